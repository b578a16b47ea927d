"""SlidingPuzzleDataset: boards that can be solved, and the rules of the game.

A board is a tuple of rows of numbers; 0 is the empty place. Knows no conversation but
its first message.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from nemo_rl.data.datasets.distinct import check_split, distinct, part_of
from nemo_rl.utils.exceptions import DataError
from nemo_rl.utils.seeding import derive_seed

Board = tuple[tuple[int, ...], ...]

MOVES = {"up": (1, 0), "down": (-1, 0), "left": (0, 1), "right": (0, -1)}
"""Where a tile moves -> where it comes from, seen from the empty place."""
STOP = "</action>"

RULES = """\
This is a sliding puzzle. Slide the tiles until they stand in order:

{solved}

The board is now:

{board}

In each turn name one direction, up, down, left or right, in which a tile slides into \
the empty place _. Write it as <action>up</action>."""


def solved_board(size: int) -> Board:
    """Return the board in order, the empty place last."""
    numbers = [*range(1, size * size), 0]
    return tuple(tuple(numbers[r * size : (r + 1) * size]) for r in range(size))


def slide(board: Board, direction: str) -> Board | None:
    """Return the board after a move, or None where no tile can move so.

    Args:
        board: The board.
        direction: One of ``MOVES``: where the tile moves.
    """
    size = len(board)
    row, column = next(
        (r, c) for r in range(size) for c in range(size) if board[r][c] == 0
    )
    down, right = MOVES[direction]
    from_row, from_column = row + down, column + right
    if not (0 <= from_row < size and 0 <= from_column < size):
        return None
    cells = [list(line) for line in board]
    cells[row][column] = cells[from_row][from_column]
    cells[from_row][from_column] = 0
    return tuple(tuple(line) for line in cells)


def draw(board: Sequence[Sequence[int]]) -> str:
    """Return the board as text, one line per row."""
    width = len(str(len(board) ** 2 - 1))
    return "\n".join(
        " ".join((str(n) if n else "_").rjust(width) for n in row) for row in board
    )


class SlidingPuzzleDataset:
    """Boards that a few moves away from the solved one lead to.

    Row::

        {"prompt": "This is a sliding puzzle. ...", "board": [[1, 2], [0, 3]],
         "stop_strings": ["</action>"], "task_name": "sliding_puzzle"}

    Args:
        split: "train" or "validation".
        board_size: Tiles along an edge.
        shuffle_moves: A board is shuffled by 1 to so many moves.
        size: Training boards; fewer where there are not so many.
        num_validation: Boards held out of training.
        seed: Decides the boards; the same for both splits.

    Raises:
        DataError: There are not enough different boards.
    """

    default_environment = "sliding_puzzle"

    def __init__(
        self,
        split: str = "train",
        board_size: int = 3,
        *,
        shuffle_moves: int = 10,
        size: int = 1000,
        num_validation: int = 64,
        seed: int = 0,
    ) -> None:
        """Shuffle the boards."""
        if board_size < 2 or shuffle_moves < 1:
            raise DataError(
                f"board_size={board_size}, shuffle_moves={shuffle_moves}: a board has "
                "at least 2 tiles along an edge and is shuffled by at least 1 move."
            )
        wanted = check_split(split, size=size, num_validation=num_validation)
        boards = _shuffled_boards(board_size, shuffle_moves, seed)
        found = distinct(boards, wanted, key=lambda board: board)
        self._boards = part_of(
            found, split, num_validation=num_validation, what="the sliding puzzle"
        )
        self._solved = draw(solved_board(board_size))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._boards)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Return a row."""
        board = self._boards[idx]
        return {
            "prompt": RULES.format(solved=self._solved, board=draw(board)),
            "board": [list(row) for row in board],
            "stop_strings": [STOP],
            "task_name": "sliding_puzzle",
        }


def _shuffled_boards(size: int, moves: int, seed: int) -> Iterator[Board]:
    solved = solved_board(size)
    generator = random.Random(derive_seed(seed, "sliding puzzle", size, moves))
    while True:
        board, before = solved, None
        for _ in range(generator.randint(1, moves)):
            # Not straight back: that would undo the move before.
            nexts = [b for d in MOVES if (b := slide(board, d)) and b != before]
            board, before = generator.choice(nexts), board
        if board != solved:
            yield board
