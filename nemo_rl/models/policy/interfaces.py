"""PolicyInterface: what an algorithm may ask of a policy, whoever implements it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_rl.backends.training.base import LossFunction
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.utils.exceptions import ConfigurationError


class PolicyInterface(ABC):
    """A policy that generates, scores and learns. Shapes: ``data/interfaces.py``.

    Attributes:
        generates_apart: ``generate`` may run while ``train`` does, with the weights of
            the last ``refit``.
        version: what the next ``refit`` calls the weights, and their tokens carry.
        stream: the generator's ``GenerationStream``; None where it answers whole
            batches, one at a time.
    """

    generates_apart: bool = False
    version: int = 0
    stream: Any = None

    @abstractmethod
    def generate(self, data: BatchedDataDict, greedy: bool = False) -> BatchedDataDict:
        """Sample one response per row of a GenerationDatumSpec batch.

        Returns:
            A GenerationOutputSpec batch.
        """

    @abstractmethod
    def get_logprobs(self, data: BatchedDataDict) -> BatchedDataDict:
        """``logprobs`` [B, S] fp32 of the tokens under the current weights."""

    def get_reference_logprobs(self, data: BatchedDataDict) -> BatchedDataDict:
        """``reference_policy_logprobs`` [B, S] fp32 under the initial weights.

        Raises:
            ConfigurationError: this policy keeps none.
        """
        raise ConfigurationError(
            f"{type(self).__name__} defines no get_reference_logprobs: set "
            "loss_fn.reference_policy_kl_penalty to 0, or define it."
        )

    @abstractmethod
    def train(self, data: BatchedDataDict, loss_fn: LossFunction) -> dict[str, Any]:
        """Update the weights once per global batch; returns metrics."""

    def get_scores(self, data: BatchedDataDict) -> BatchedDataDict:
        """``scores`` [B] fp32 of a reward model.

        Raises:
            ConfigurationError: this policy is none.
        """
        raise ConfigurationError(
            f"{type(self).__name__} gives no scores: it is no reward model. Set "
            "policy.reward_model_cfg.enabled to true."
        )

    def refit(self) -> dict[str, float] | None:
        """Give the generator the trained weights; nothing where it shares them.

        Returns:
            Metrics of the transfer, if any.
        """
        return None

    def check_rollout(self, data: BatchedDataDict) -> Any:
        """Does what was sampled fit the trainer's weights? None: it cannot but.

        Args:
            data: a train batch.

        Returns:
            A ``guard.GuardOutcome``.
        """
        return None

    def report_to(self, log_dir: Path, run_config: Mapping[str, Any]) -> None:
        """Say where a report goes if generator and trainer disagree."""
        return

    def shutdown(self) -> None:
        """End what the policy has started."""
        return

    def save_checkpoint(self, path: Path, *, with_optimizer: bool = True) -> None:
        """Write everything a resume needs below ``path``.

        Raises:
            ConfigurationError: this kind of policy cannot be saved.
        """
        raise ConfigurationError(self._cannot("save_checkpoint"))

    def load_checkpoint(self, path: Path) -> None:
        """Restore what ``save_checkpoint`` wrote."""
        raise ConfigurationError(self._cannot("load_checkpoint"))

    def save_hf(self, folder: Path) -> None:
        """Write the weights as a Hugging Face folder."""
        raise ConfigurationError(self._cannot("save_hf"))

    def _cannot(self, method: str) -> str:
        return (
            f"{type(self).__name__} defines no {method}: set checkpointing.enabled to "
            "false, or define it."
        )
