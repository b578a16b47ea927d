"""WeightSender: a training rank's part in sending the weights to a generator.

Knows which ranks gather and which of them send; not how tensors travel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from nemo_rl.backends.refit.base import RefitLink, TensorSpec, open_sender
from nemo_rl.config.backends import parallel_dims, training_backend
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.distributed.rank import RankInfo

Export = Callable[[], Iterable[tuple[str, Tensor]]]


class WeightSender:
    """Sends what this rank's pipeline stage has, or helps to gather it.

    Of every stage the first rank sends. Only ranks take part without which it could not
    be gathered: those of the first copy of the model, or all of them where a copy is
    divided over data-parallel ranks (experts, FSDP, engines of one's own).

    Args:
        rank: this process's place.
        policy: the policy section.
    """

    def __init__(self, rank: RankInfo, policy: PolicyConfig) -> None:
        dims = parallel_dims(policy, rank.world_size)
        place = dims.coordinates(rank.rank)
        undivided = training_backend(policy) == "megatron" and dims.ep == 1
        self.gathers = place.dp == 0 or not undivided
        self.stage = place.pp if rank.rank == dims.rank_of(pp=place.pp) else None

    def plan(
        self, export: Export, specs: Callable[[], list[TensorSpec]] | None
    ) -> list[TensorSpec] | None:
        """What this rank sends, in order; None if it does not send.

        Args:
            export: yields (Hugging Face name, full tensor).
            specs: says the same without gathering anything, where the engine can.
        """
        if specs is not None:
            return None if self.stage is None else specs()
        found = [
            TensorSpec(name, str(w.dtype).removeprefix("torch."), tuple(w.shape))
            for name, w in (export() if self.gathers else ())
        ]
        return None if self.stage is None else found

    def send(
        self, export: Export, link: RefitLink, observer: Any, device: Any
    ) -> dict[str, Any] | None:
        """Take part in a transfer; the sender's statistics and findings.

        Args:
            export: yields (Hugging Face name, full tensor), every rank at once.
            link: the transfer.
            observer: class of a ``refit.WeightObserver``, or None.
            device: where the tensors are.
        """
        if not self.gathers:
            return None
        if self.stage is None:
            for _ in export():  # the sender needs this rank's part of each
                pass
            return None
        watching = observer() if observer is not None else None
        stats = open_sender(link, self.stage, device).send(_named(export()), watching)
        report = stats.as_dict()
        if watching is not None:
            report["observed"] = watching.report()
        return report


def _named(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights:
        yield name, tensor.detach()
