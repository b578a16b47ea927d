"""Boards that can be solved, each once."""

from __future__ import annotations

import pytest

from nemo_rl.data.datasets.registry import load_dataset
from nemo_rl.data.datasets.sliding_puzzle import MOVES, draw, slide, solved_board
from nemo_rl.utils.exceptions import DataError


def boards(split, **options):
    options = {"board_size": 2, "shuffle_moves": 6, "num_validation": 3, **options}
    rows = load_dataset("sliding_puzzle", split=split, **options)
    return [tuple(tuple(line) for line in rows[i]["board"]) for i in range(len(rows))]


def reachable(size):
    found, edge = set(), {solved_board(size)}
    while edge:
        found |= edge
        edge = {b for board in edge for m in MOVES if (b := slide(board, m))} - found
    return found


def test_every_board_can_be_solved_and_is_in_one_split():
    train, validation = boards("train"), boards("validation")
    assert len(set(train)) == len(train) and len(set(validation)) == 3
    assert not set(train) & set(validation)
    assert {*train, *validation} <= reachable(2) - {solved_board(2)}
    # All but the solved one of the 12 boards that can be solved.
    assert len(train) + 3 == 11


def test_a_seed_is_a_data_set():
    options = {"board_size": 3, "size": 20}
    first = boards("train", **options)
    assert first == boards("train", **options)
    assert first != boards("train", seed=1, **options)
    assert boards("validation", board_size=3) == boards(
        "validation", board_size=3, size=7
    )


def test_slides_and_drawings():
    board = ((1, 2), (3, 0))
    assert slide(board, "down") == ((1, 0), (3, 2))
    assert slide(board, "right") == ((1, 2), (0, 3))
    assert slide(board, "up") is None and slide(board, "left") is None
    assert draw(board) == "1 2\n3 _"
    assert draw(solved_board(4)).splitlines()[-1] == "13 14 15  _"


def test_rows_say_the_rules_and_where_a_response_ends():
    row = load_dataset("sliding_puzzle", size=1)[0]
    assert "<action>up</action>" in row["prompt"] and "{" not in row["prompt"]
    assert row["stop_strings"] == ["</action>"]
    with pytest.raises(DataError, match="at least 2 tiles along an edge"):
        load_dataset("sliding_puzzle", board_size=1)
