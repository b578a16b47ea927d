"""WeightSender: a training rank's part in sending weights to a generator of its own.

Of every pipeline stage one rank sends; others help it gather, or have nothing to do.
Knows an engine by its export alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from nemo_rl.backends.refit.base import RefitLink, TensorSpec, open_sender
from nemo_rl.backends.refit.control import PeerFailed
from nemo_rl.config.parallel import Coordinates
from nemo_rl.utils.exceptions import NemoRLError

Export = Callable[[], Iterator[tuple[str, Tensor]]]


class WeightSender:
    """One rank.

    Args:
        place: of this rank in the layout.
        export: the engine's ``export_weights``.
        specs: its ``weight_specs``, None where it has none.
        is_needed: its ``is_needed_to_export``, None where it has none.
        device: where it keeps weights.
    """

    def __init__(
        self,
        place: Coordinates,
        export: Export,
        specs: Callable[[], list[TensorSpec] | None] | None = None,
        is_needed: Callable[[], bool] | None = None,
        *,
        device: torch.device,
    ) -> None:
        self._sends = (place.tp, place.cp, place.dp) == (0, 0, 0)
        self._stage, self._device = place.pp, device
        self._export, self._specs = export, specs
        self._is_needed = is_needed is None or is_needed()

    def plan(self) -> list[TensorSpec] | None:
        """What this rank sends, in order; None if it sends nothing.

        All ranks call it: an engine that cannot say exports once.
        """
        if self._specs is not None:
            return self._specs() if self._sends else None
        found = [
            TensorSpec(name, str(w.dtype).removeprefix("torch."), tuple(w.shape))
            for name, w in self._export()
        ]
        return found if self._sends else None

    @torch.no_grad()
    def send(
        self, link: RefitLink, observer: Callable[[], Any] | None = None
    ) -> dict[str, Any]:
        """Send this stage's weights, or help gather them; ends when all have them.

        Args:
            link: the transfer.
            observer: makes a ``WeightObserver`` on ranks that send.

        Returns:
            Of ranks that send ``TransferStats.as_dict()``, ``observed``, the observer's
            report, ``error``: why the weights did not arrive, None if they did, and
            ``peer_failed``: whether somebody else gave up first. An error is returned,
            not raised, because this rank and its weights are as they were.
            Of other ranks nothing.
        """
        if not self._is_needed:
            return {}
        tensors = self._export()
        if not self._sends:
            _exhaust(tensors)
            return {}
        sender = open_sender(link, self._stage, self._device)
        observe = observer() if observer is not None else None
        error, caused = None, False
        try:
            sender.send(tensors, observe)
        except NemoRLError as failure:
            error, caused = str(failure), isinstance(failure, PeerFailed)
            # Those that help to gather are in the middle of it.
            _exhaust(tensors)
        observed = observe.report() if observe is not None else {}
        return {
            **sender.stats.as_dict(),
            "observed": observed,
            "error": error,
            "peer_failed": caused,
        }


def _exhaust(tensors: Iterator[tuple[str, Tensor]]) -> None:
    for _ in tensors:
        pass
