"""What a training engine and a loss must offer; knows no engine and no algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from nemo_rl.backends import factory
from nemo_rl.backends.refit.base import TensorSpec
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.distributed.rank import RankInfo

Batch = Mapping[str, Any]
"""A shard or micro-batch: see ``data/interfaces.py`` for the keys and shapes."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """All that an engine is set up from.

    Attributes:
        rank: this process's place among the workers.
        policy: the policy section of the recipe.
        model_folder: local Hugging Face folder of the base model.
        keep_reference: keep the base weights for ``get_reference_logprobs``.
        teacher_folder: local Hugging Face folder of a teacher of the same vocabulary;
            None without one.
        seed: for the generators of this rank.
        threads: CPU threads of this rank; None leaves the library's choice.
    """

    rank: RankInfo
    policy: PolicyConfig
    model_folder: Path
    keep_reference: bool = False
    teacher_folder: Path | None = None
    seed: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class ModelOutput:
    """What the forward pass of one micro-batch hands to the loss.

    Attributes:
        logprobs: [b, S] fp32, with gradient; entry t is the log-probability of token
            t given the tokens before it under ``softmax(logits / temperature)``.
            Column 0 and every position with ``token_mask == 0`` are 0.
        entropy: [b, S] fp32, with gradient; entry t is the entropy in nats of the
            distribution that token t was drawn from. None unless the loss has
            ``needs_entropy``.
        topk_logprobs: [b, S, K] fp32, with gradient; entry t has those of the K tokens
            that the teacher found likeliest in place of token t. None unless the loss
            has ``teacher_topk``.
        scores: [b] fp32, with gradient; of a reward model, whose ``logprobs`` are NaN.
    """

    logprobs: Tensor
    entropy: Tensor | None = None
    topk_logprobs: Tensor | None = None
    scores: Tensor | None = None


@runtime_checkable
class LossFunction(Protocol):
    """A loss over one micro-batch, normalised by the whole global batch.

    ``batch`` is the micro-batch with two scalars added: ``global_valid_tokens`` and
    ``global_valid_seqs``, counted over the global batch and all data-parallel ranks.
    The result is this micro-batch's share: shares are summed, never averaged, so the
    gradient depends neither on the micro-batch size nor on the layout. Metrics are
    shares too, except names that end in ``_min`` or ``_max``, which are infinite where
    the micro-batch has no valid token.

    A loss travels to the workers: it holds configuration, never tensors or handles.
    It may have attributes, see ``rows_per_sample``, ``needs_entropy`` and
    ``teacher_topk`` below.
    """

    def __call__(
        self, batch: Batch, output: ModelOutput
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (scalar loss share, metric shares)."""
        ...


def rows_per_sample(loss_fn: Any) -> int:
    """Rows that a loss looks at together, and that no cut may part: 2 for pairs.

    Batch sizes of the configuration count samples. Read from the attribute
    ``rows_per_sample`` of the loss; 1 where it has none.
    """
    return getattr(loss_fn, "rows_per_sample", 1)


def needs_entropy(loss_fn: Any) -> bool:
    """Whether a loss wants ``ModelOutput.entropy``: its attribute ``needs_entropy``."""
    return getattr(loss_fn, "needs_entropy", False)


def teacher_topk(loss_fn: Any) -> int | None:
    """How many of a teacher's likeliest tokens a loss compares with; None: no teacher.

    Its attribute ``teacher_topk``. The micro-batch then has ``teacher_logprobs``
    [b, S, K] fp32, and the output ``topk_logprobs``.
    """
    return getattr(loss_fn, "teacher_topk", None)


class TrainingBackend(Protocol):
    """An engine on one rank. Every rank of the group calls every method, in order."""

    def setup(self, config: EngineConfig) -> None:
        """Join the process group, build the model, load the initial weights."""

    def train_step(self, batch: Batch, loss_fn: LossFunction) -> dict[str, Any]:
        """One optimizer step on this replica's shard of one global batch.

        Returns:
            ``micro_metrics``, one dict of metric shares per micro-batch, with the loss
            share under ``"loss"``; ``grad_norm`` and ``learning_rate`` where known. A
            dict of numbers without ``micro_metrics`` counts as one micro-batch.
        """
        ...

    def get_logprobs(self, batch: Batch) -> Tensor | None:
        """[B, S] fp32 log-probs of the current weights; None off the last stage."""
        ...

    def get_reference_logprobs(self, batch: Batch) -> Tensor | None:
        """As ``get_logprobs`` under the base weights."""
        ...

    def get_scores(self, batch: Batch) -> Tensor | None:
        """[B] fp32 scores of a reward model; None off the last stage."""
        ...

    def save_checkpoint(self, path: Path, *, with_optimizer: bool = True) -> None:
        """Write weights, optimizer and generators below ``path``."""

    def load_checkpoint(self, path: Path) -> None:
        """Restore what ``save_checkpoint`` wrote."""

    def save_hf(self, folder: Path) -> None:
        """Write the weights as a Hugging Face folder."""

    def export_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (Hugging Face name, full tensor) of this pipeline stage."""
        ...

    def weight_specs(self) -> list[TensorSpec] | None:
        """What ``export_weights`` yields, without a collective; None: does not send.

        One rank of every pipeline stage sends. An engine without this method exports
        once to find out.
        """
        ...

    def is_needed_to_export(self) -> bool:
        """Whether a rank that sends needs this one's ``export_weights``.

        Without this method all ranks take part.
        """
        ...

    def shutdown(self) -> None:
        """Release the process group."""


_Class = TypeVar("_Class", bound=type)


def register_training_backend(name: str) -> Callable[[_Class], _Class]:
    """Class decorator: make an engine selectable by ``name``."""
    return factory.register("training", name)
