"""ReasoningGymDataset: a task of reasoning_gym, without a problem in both splits.

Problems are made in a process of its own with a fixed hash seed: some tasks iterate
over sets, and another order would be another data set after a resume. Run as a program
this module is that process.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from nemo_rl.data.datasets.distinct import check_split, distinct, part_of
from nemo_rl.distributed.ray_session import driver_python_path
from nemo_rl.utils.env import inherited
from nemo_rl.utils.exceptions import ConfigurationError, DataError
from nemo_rl.utils.imports import require
from nemo_rl.utils.suggest import did_you_mean

INSTRUCTION = (
    "\n\nThink step by step, then give the final answer alone between <answer> and "
    "</answer>."
)


class ReasoningGymDataset:
    """Problems of one task, each different from the others.

    The problems of a seed are one stream; the first different ones are for validation,
    the following for training. Row::

        {"prompt": "State the final answer to ...: 4 + 3 =...", "answer": "7",
         "task_name": "reasoning_gym:chain_sum",
         "problem": {"task": "chain_sum", "config": {}, "seed": 0, "index": 17}}

    Args:
        split: "train" or "validation".
        task: Name of the task, such as "chain_sum".
        size: Training problems; fewer where the task has not so many.
        num_validation: Problems held out of training.
        seed: Decides the stream. Use the same one for both splits: the problems of
            two seeds overlap.
        config: Settings of the task, such as ``{"max_terms": 3}``.
        instruction: Put after every problem; says where the answer must stand.

    Raises:
        ConfigurationError: reasoning_gym is not installed, or has no such task.
        DataError: The task has not enough different problems.
    """

    default_environment = "reasoning_gym"

    def __init__(
        self,
        split: str = "train",
        task: str = "chain_sum",
        *,
        size: int = 1000,
        num_validation: int = 100,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        instruction: str = INSTRUCTION,
    ) -> None:
        """Make the problems."""
        wanted = check_split(split, size=size, num_validation=num_validation)
        self._problem = {"task": task, "config": dict(config or {}), "seed": seed}
        self._instruction = instruction
        items = _in_own_process({**self._problem, "wanted": wanted})
        self._items = part_of(
            items, split, num_validation=num_validation, what=f"reasoning_gym:{task}"
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._items)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Return a row."""
        item = self._items[idx]
        return {
            "prompt": item["question"] + self._instruction,
            "answer": item["answer"],
            "task_name": f"reasoning_gym:{self._problem['task']}",
            "problem": {**self._problem, "index": item["index"]},
        }


def make_items(
    task: str, config: Mapping[str, Any], seed: int, wanted: int
) -> list[dict[str, Any]]:
    """Return the first different problems of a task's stream.

    Returns:
        {"index", "question", "answer"} each; the answer is None where the task judges
        by other means.
    """

    def stream() -> Iterator[dict[str, Any]]:
        index = 0
        while True:
            entry = make_entry(task, json.dumps(dict(config)), seed, index)
            answer = entry["answer"]
            yield {
                "index": index,
                "question": entry["question"],
                "answer": None if answer is None else str(answer),
            }
            index += 1

    return distinct(stream(), wanted, key=lambda item: item["question"])


def make_entry(task: str, config: str, seed: int, index: int) -> dict[str, Any]:
    """Return problem ``index`` of a stream as reasoning_gym gives it.

    Args:
        task: Name of the task.
        config: Its settings, as JSON.
        seed: Of the stream.
        index: From 0.
    """
    # Some tasks draw from the global generator instead of their own.
    random.seed(seed + index)
    # A problem has the seed of its stream plus its index, and a few tasks have no
    # problems beyond their size.
    place = index % len(make_task(task, config, seed))
    return make_task(task, config, seed + index - place)[place]


@lru_cache(maxsize=64)
def make_task(task: str, config: str, seed: int) -> Any:
    """Return the stream of problems.

    Raises:
        ConfigurationError: No such task, or it has no such settings.
    """
    gym = require("reasoning_gym")
    known = gym.factory.DATASETS
    if task not in known:
        raise ConfigurationError(
            f"reasoning_gym has no task {task!r}.{did_you_mean(task, known)}"
        )
    try:
        return gym.create_dataset(task, seed=seed, **json.loads(config))
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigurationError(
            f"reasoning_gym task {task!r} with {config}: {error}"
        ) from error


def _in_own_process(request: dict[str, Any]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "nemo_rl.data.datasets.reasoning_gym"],
        input=json.dumps(request),
        env={
            **inherited(),
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": driver_python_path(),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    answer = done.stdout.rpartition("\n")[2]
    if done.returncode or not answer:
        raise DataError(
            f"Making problems of reasoning_gym:{request['task']} failed: "
            f"{done.stderr.strip()[-500:]}"
        )
    made = json.loads(answer)
    if "refused" in made:
        raise ConfigurationError(made["refused"])
    return made["items"]


def main() -> None:
    """Read a request from stdin; the last line of stdout is the answer."""
    try:
        answer = {"items": make_items(**json.load(sys.stdin))}
    except ConfigurationError as error:
        answer = {"refused": str(error)}
    sys.stdout.write("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
