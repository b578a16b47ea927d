"""What an algorithm and a loss look like to a user who writes one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from nemo_rl.backends.training.base import Batch, ModelOutput


class LossFunctionInterface(ABC):
    """A loss over one micro-batch; subclasses write ``compute_loss``.

    Instances travel to the workers: they hold configuration, never tensors or handles.

    Attributes:
        rows_per_sample: consecutive rows that belong together; 2 for pairs.
        needs_entropy: ``model_output.entropy`` is wanted.
    """

    rows_per_sample: ClassVar[int] = 1
    needs_entropy: bool = False

    @abstractmethod
    def compute_loss(
        self, batch: Batch, model_output: ModelOutput
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return this micro-batch's share of the loss, and of its metrics.

        Args:
            batch: tensors [b, ...] (see ``data/interfaces.py``), and the scalars
                ``global_valid_tokens`` and ``global_valid_seqs`` to divide by.
            model_output: ``logprobs`` [b, S] fp32 with gradient.
        """

    def __call__(
        self, batch: Batch, output: ModelOutput
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """As ``compute_loss``: what a training backend calls."""
        return self.compute_loss(batch, output)


class AlgorithmInterface(ABC):
    """An algorithm over a policy that exists already.

    Args:
        policy: what is trained.
        config: the recipe, a mapping or a configuration object.
    """

    def __init__(self, policy: Any, config: Any) -> None:
        self.policy = policy
        self.config = config

    @abstractmethod
    def train(self) -> Any:
        """Train to the end; returns a result."""

    @abstractmethod
    def evaluate(self) -> Any:
        """Return validation metrics of the current policy."""
