"""RolloutSource: where a training step gets its scored responses from.

The seam between training and generation. ``DirectSource`` samples when asked, with the
weights as they are; ``ahead.py`` has sampled already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from nemo_rl.distributed.batched_data_dict import BatchedDataDict

Metrics = dict[str, float]
Sampled = tuple[BatchedDataDict, Metrics]


class RolloutSource(Protocol):
    """Gives every step its rollouts, and the generator its weights.

    Attributes:
        phase: what the trainer waits for in ``next``.
    """

    phase: str

    def open(
        self, step: int, total: int, saved: Path | None
    ) -> Iterator[BatchedDataDict]:
        """Begin after so many steps; yields the prompts that each step begins with.

        Args:
            step: training steps completed.
            total: training steps of the whole run.
            saved: folder of the checkpoint that is resumed.
        """
        ...

    def next(self, prompts: BatchedDataDict, step: int) -> Sampled:
        """The rollouts of a step, from 1, and metrics over them."""
        ...

    def again(self, prompts: BatchedDataDict, step: int) -> Sampled:
        """The same once more, where the first ones came from other weights.

        Raises:
            ConsistencyError: there is no going back.
        """
        ...

    def refit(self) -> Metrics:
        """Give the generator the weights of the step that has just been made.

        Returns:
            Metrics of the transfer, if weights move.
        """
        ...

    def data_state(self) -> dict[str, Any]:
        """Where the data stands after the last step."""
        ...

    def exclusively(self) -> AbstractContextManager[Any]:
        """Environment, data and tokenizer for the calling thread alone."""
        ...

    def save(self, folder: Path) -> None:
        """Write what is sampled and not trained on into a checkpoint's folder."""
        ...

    def close(self) -> None:
        """End what runs; may be called twice."""
        ...


class DirectSource:
    """Samples a step's rollouts when the step asks for them.

    Args:
        sample: prompts and step to rollouts and metrics.
        data: a ``DataModule``.
        prompts_per_batch: rows of the data set that a step begins with.
        policy: has ``refit``.
    """

    phase = "generation"

    def __init__(
        self,
        sample: Callable[[BatchedDataDict, int], Sampled],
        *,
        data: Any,
        prompts_per_batch: int,
        policy: Any,
    ) -> None:
        self._sample, self._data, self._policy = sample, data, policy
        self._size = prompts_per_batch

    def open(
        self, step: int, total: int, saved: Path | None
    ) -> Iterator[BatchedDataDict]:
        """See ``RolloutSource``."""
        return self._data.batches(self._size)

    def next(self, prompts: BatchedDataDict, step: int) -> Sampled:
        """See ``RolloutSource``."""
        return self._sample(prompts, step)

    def again(self, prompts: BatchedDataDict, step: int) -> Sampled:
        """See ``RolloutSource``."""
        return self._sample(prompts, step)

    def refit(self) -> Metrics:
        """See ``RolloutSource``."""
        return self._policy.refit() or {}

    def data_state(self) -> dict[str, Any]:
        """See ``RolloutSource``."""
        return self._data.state_dict()

    def exclusively(self) -> AbstractContextManager[Any]:
        """See ``RolloutSource``."""
        return nullcontext()

    def save(self, folder: Path) -> None:
        """Nothing is sampled ahead."""

    def close(self) -> None:
        """Nothing runs."""
