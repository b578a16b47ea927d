"""SlidingPuzzleEnvironment: a game over several turns, to imitate.

The state of a game is in its metadata, so the environment itself has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nemo_rl.config.environment import SlidingPuzzleEnvConfig
from nemo_rl.data.datasets.sliding_puzzle import (
    MOVES,
    STOP,
    draw,
    slide,
    solved_board,
)
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn
from nemo_rl.utils.exceptions import RewardError

_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)


class SlidingPuzzleEnvironment(EnvironmentInterface):
    """Rewards 1.0 for the move that solves the puzzle, and nothing else.

    A response names its move as ``<action>up</action>``; the last one counts. What is
    no move, or one that no tile can make, leaves the board as it is and counts as one
    of ``max_moves``. Metrics: ``solved``, ``invalid_moves``.

    Args:
        config: The fields of ``env.sliding_puzzle``.
    """

    def __init__(
        self, config: SlidingPuzzleEnvConfig | Mapping[str, Any] | None = None
    ) -> None:
        """Read the settings."""
        section = SlidingPuzzleEnvConfig.from_mapping(config or {})
        super().__init__(section.to_dict())
        self._max_moves = section.max_moves

    def step(
        self,
        message_log_batch: list[list[dict[str, Any]]],
        metadata: list[dict[str, Any]],
    ) -> EnvironmentReturn:
        """Make a move on every board.

        Raises:
            RewardError: A row has no board.
        """
        import torch

        games = [
            self._move(str(log[-1]["content"]), meta)
            for log, meta in zip(message_log_batch, metadata, strict=True)
        ]
        solved = [game["solved"] for game in games]
        return EnvironmentReturn(
            observations=[{"role": "user", "content": g.pop("said")} for g in games],
            metadata=[{"board": g["board"], "moves": g["moves"]} for g in games],
            next_stop_strings=[[STOP]] * len(games),
            rewards=torch.tensor(solved, dtype=torch.float32),
            terminateds=torch.tensor([game["over"] for game in games]),
            answers=[game["action"] for game in games],
            metrics={
                "solved": torch.tensor(solved, dtype=torch.float32),
                "invalid_moves": torch.tensor([float(g["invalid"]) for g in games]),
            },
        )

    def _move(self, response: str, meta: Mapping[str, Any]) -> dict[str, Any]:
        """Return a game's new state and what to say about it."""
        start = (meta.get("row") or {}).get("board")
        if start is None:
            raise RewardError(
                "The environment sliding_puzzle plays rows with a 'board', such as "
                "those of the data set of that name."
            )
        board = tuple(tuple(row) for row in meta.get("board", start))
        moves = meta.get("moves", 0) + 1
        named = _ACTION.findall(response)
        action = named[-1].strip().lower() if named else None
        after = slide(board, action) if action in MOVES else None
        if action not in MOVES:
            said = "That is no move. Write <action>up</action>, or another direction."
        elif after is None:
            said = f"No tile can move {action}."
        else:
            said = f"You moved {action}."
        board = after or board
        solved = board == solved_board(len(board))
        return {
            "board": board,
            "moves": moves,
            "solved": solved,
            "over": solved or moves >= self._max_moves,
            "action": action,
            "invalid": after is None,
            "said": f"{said} The board is now:\n\n{draw(board)}",
        }
