"""The game: moves, walls, nonsense and its end."""

from __future__ import annotations

from nemo_rl.environments.sliding_puzzle import SlidingPuzzleEnvironment

NEARLY = {"board": [[1, 2], [0, 3]]}


def play(environment, row, *responses):
    """One conversation; the returned turns."""
    meta, turns = {"row": row}, []
    for text in responses:
        log = [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
        turns.append(environment.step([log], [meta]))
        meta = {**meta, **turns[-1].metadata[0]}
    return turns


def test_the_move_that_solves_it_is_rewarded_and_ends_it():
    (turn,) = play(SlidingPuzzleEnvironment(), NEARLY, "so <action> LEFT </action>")
    assert turn.rewards.tolist() == [1.0] and turn.terminateds.tolist() == [True]
    assert turn.metrics["solved"].tolist() == [1.0]
    assert turn.observations[0]["content"].endswith("1 2\n3 _")
    assert turn.answers == ["left"]


def test_walls_and_nonsense_leave_the_board_and_cost_a_move():
    environment = SlidingPuzzleEnvironment({"max_moves": 3})
    turns = play(
        environment, NEARLY, "up", "<action>right</action>", "<action>down</action>"
    )
    said = [turn.observations[0]["content"] for turn in turns]
    assert said[0].startswith("That is no move. Write <action>up</action>")
    assert said[1].startswith("No tile can move right. The board is now:\n\n1 2\n_ 3")
    assert said[2].startswith("You moved down. The board is now:\n\n_ 2\n1 3")
    assert [turn.metrics["invalid_moves"].item() for turn in turns] == [1, 1, 0]
    assert [turn.terminateds.item() for turn in turns] == [False, False, True]
    assert sum(turn.rewards.item() for turn in turns) == 0
    assert turns[0].next_stop_strings == [["</action>"]]


def test_games_do_not_know_of_one_another():
    environment = SlidingPuzzleEnvironment()
    logs = [
        [{"role": "assistant", "content": f"<action>{move}</action>"}]
        for move in ("left", "down")
    ]
    turn = environment.step(logs, [{"row": NEARLY}, {"row": NEARLY}])
    assert turn.terminateds.tolist() == [True, False]
    assert turn.metadata[1]["board"] == ((0, 2), (1, 3))
    assert NEARLY == {"board": [[1, 2], [0, 3]]}
