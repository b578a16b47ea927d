"""GenerationInterface: what a driver may ask of a generator, and the shapes it takes.

Knows no engine. The datum shapes and the configuration are defined in ``data`` and
``config`` and offered here as well, because whoever writes a generator needs them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from nemo_rl.backends.generation.base import GenerationRequest, GenerationResult
from nemo_rl.config.generation import GenerationConfig
from nemo_rl.data.interfaces import GenerationDatumSpec, GenerationOutputSpec
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.utils.exceptions import ConfigurationError

__all__ = [
    "GenerationConfig",
    "GenerationDatumSpec",
    "GenerationInterface",
    "GenerationOutputSpec",
    "GenerationRequest",
    "GenerationResult",
    "GenerationStream",
]


class GenerationStream(Protocol):
    """A generator that takes requests at any time and answers them one by one.

    Its methods may be called from several threads. Results come in the order in which
    they end.
    """

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Start responses; returns at once."""

    def poll(self, ids: Sequence[str], timeout_s: float) -> list[GenerationResult]:
        """Those of the responses that have ended; waits for one at most so long.

        Each result is given once. An engine that died is restarted and its responses
        are sampled again, from the same seeds.

        Raises:
            WorkerError: an engine died again and again.
        """
        ...

    def abort(self, ids: Sequence[str]) -> list[GenerationResult]:
        """End responses; what they have so far, those that ended meanwhile included."""
        ...


class GenerationInterface(ABC):
    """A generator: tokens in, sampled tokens and their log-probs out.

    Example::

        generator.prepare_for_generation()
        output = generator.generate(prompts, greedy=False)
        generator.finish_generation()
    """

    @abstractmethod
    def generate(self, data: BatchedDataDict, greedy: bool) -> BatchedDataDict:
        """Sample one response per row.

        Args:
            data: a ``GenerationDatumSpec`` batch of B prompts.
            greedy: take the likeliest token instead of sampling.

        Returns:
            A ``GenerationOutputSpec`` batch of B rows, in the order of ``data``.
        """

    @abstractmethod
    def prepare_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """Get ready to generate, for example by taking memory back."""

    @abstractmethod
    def finish_generation(self, *args: Any, **kwargs: Any) -> Any:
        """Let go of what only generation needs."""

    def update_weights(self, weights: Mapping[str, Any]) -> None:
        """Take new weights: Hugging Face names to full tensors.

        Raises:
            ConfigurationError: this generator cannot.
        """
        raise ConfigurationError(
            f"{type(self).__name__} defines no update_weights: it cannot follow a "
            "policy that learns."
        )
