"""Refit: the driver's part of moving trained weights to a generator of its own.

Decides how they move, tells both sides at the same time, and makes one error of what
goes wrong on either. Holds no weight; knows neither the engines nor their machines.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from nemo_rl.backends.refit.base import RefitLink, TensorSpec
from nemo_rl.backends.refit.control import ControlStore, PeerFailed
from nemo_rl.config.refit import RefitConfig
from nemo_rl.distributed.interfaces import WorkerGroup
from nemo_rl.utils.exceptions import ConfigurationError, NemoRLError, RefitError

MIB = 2**20


class ReceiverGroup(Protocol):
    """Whatever generates with weights that it is sent."""

    @property
    def num_receivers(self) -> int:
        """Processes that hold a copy or a part of the weights; each gets all."""
        ...

    @property
    def membership(self) -> Hashable:
        """Changes whenever one of those processes is another than before."""
        ...

    def receive(self, link: RefitLink, version: int) -> list[dict[str, Any]]:
        """Have every process take all tensors of ``open_receiver(link, index)``.

        Args:
            link: the transfer; processes are numbered 0 .. num_receivers - 1.
            version: what the weights are called from now on.

        Returns:
            Per process ``TransferStats.as_dict()`` and what else it has to say.

        Raises:
            NemoRLError: a process did not get or could not load the weights.
        """
        ...


class WeightObserver(Protocol):
    """Looks at weights as they are sent, on the ranks that send them."""

    def __call__(self, name: str, tensor: Any) -> None:
        """See one tensor; it is valid during the call."""
        ...

    def report(self) -> dict[str, Any]:
        """What was found, by tensor name."""
        ...


@dataclass(frozen=True, kw_only=True)
class RefitReport:
    """One transfer of weights.

    Attributes:
        version: what the weights are called.
        transport: how they travelled.
        model_bytes: bytes of all tensors, each counted once.
        bytes_moved: bytes that the sending side put on its way, all stages together.
        seconds: from the call to the last answer.
        sender_peak_bytes: most memory a sending rank held in buckets.
        receiver_peak_bytes: most memory a receiver held in buckets.
        observed: what the observers of all sending ranks found, by tensor name.
        senders: per sending stage its statistics.
        receivers: per receiver what it answered.
    """

    version: int
    transport: str
    model_bytes: int
    bytes_moved: int
    seconds: float
    sender_peak_bytes: int
    receiver_peak_bytes: int
    observed: dict[str, Any] = field(default_factory=dict)
    senders: list[dict[str, Any]] = field(default_factory=list)
    receivers: list[dict[str, Any]] = field(default_factory=list)

    def metrics(self) -> dict[str, float]:
        """For the log: refit_bytes, refit_s, refit_gib_per_s, refit_peak_extra_mib."""
        peak = max(self.sender_peak_bytes, self.receiver_peak_bytes)
        return {
            "refit_bytes": float(self.bytes_moved),
            "refit_s": self.seconds,
            "refit_gib_per_s": self.bytes_moved / 2**30 / max(self.seconds, 1e-9),
            "refit_peak_extra_mib": peak / MIB,
        }


class Refit:
    """Moves the weights of a policy's workers to a group of receivers.

    Args:
        workers: the training ranks: ``refit_plan`` and ``send_weights``.
        receivers: the generating side.
        config: policy.generation.refit.
        transport: what ``choose_transport`` chose.
        address: this host's address as the workers see it.
        folder: for ``files``, where ``config.folder`` is null.
        cast: dtype that matrices are cast to on the way; None: as they are trained.
        observer: class of a ``WeightObserver``, one is made on every sending rank.
    """

    def __init__(  # noqa: PLR0913 - keyword-only beyond the three everybody passes
        self,
        workers: WorkerGroup,
        receivers: ReceiverGroup,
        config: RefitConfig,
        *,
        transport: str,
        address: str = "127.0.0.1",
        folder: str | None = None,
        cast: str | None = None,
        observer: type[WeightObserver] | None = None,
    ) -> None:
        self._workers, self._receivers = workers, receivers
        self._config, self._transport, self._cast = config, transport, cast
        self._folder = config.folder or folder
        if transport == "files" and self._folder is None:
            raise ConfigurationError(
                "policy.generation.refit.transport is files: set "
                "policy.generation.refit.folder to a folder that all nodes see."
            )
        self._observer = observer
        self._control = ControlStore(address)
        self._plan: tuple[tuple[TensorSpec, ...], ...] | None = None
        self._membership: Hashable = None
        self._name, self._group = uuid.uuid4().hex[:12], ""
        self._generation = self._serial = 0

    def run(self, version: int) -> RefitReport:
        """Send every weight once; ends when all receivers have loaded them.

        Args:
            version: what the weights are called from now on; sending a version again
                is no error.

        Raises:
            RefitError: the weights did not arrive; names the root cause. The receivers
                may hold a part of them: send again, or end them.
            NemoRLError: a worker or a receiver failed; its own error.
        """
        begin = time.perf_counter()
        link = self._next_link()
        with ThreadPoolExecutor(1, "refit") as pool:
            # Both sides wait for one another, so neither call may wait for the other.
            receiving = pool.submit(self._receive, link, version)
            try:
                sent = self._send(link)
            except NemoRLError as error:
                self._give_up(error, receiving.exception())
            failed = receiving.exception()
        errors = [
            (PeerFailed if s["peer_failed"] else RefitError)(s["error"])
            for s in sent
            if s["error"]
        ]
        if failed is not None or errors:
            self._give_up(*errors, failed)
        received = receiving.result()
        self._control.forget(link)
        return RefitReport(
            version=version,
            transport=self._transport,
            model_bytes=link.model_bytes,
            bytes_moved=sum(s["bytes_moved"] for s in sent),
            seconds=time.perf_counter() - begin,
            sender_peak_bytes=max(s["peak_extra_bytes"] for s in sent),
            receiver_peak_bytes=max(r["peak_extra_bytes"] for r in received),
            observed={k: v for s in sent for k, v in s["observed"].items()},
            senders=sent,
            receivers=received,
        )

    @property
    def plan(self) -> tuple[tuple[TensorSpec, ...], ...]:
        """What every sending stage sends, in order; asked of the ranks once."""
        if self._plan is None:
            parts = self._workers.run_all("refit_plan")
            self._plan = tuple(
                tuple(spec.cast(self._cast) for spec in part) for part in parts if part
            )
        return self._plan

    def _next_link(self) -> RefitLink:
        plan = self.plan
        membership = self._receivers.membership
        if membership != self._membership or not self._group:
            self._generation += 1
            self._group = f"{self._name}.{self._generation}"
            self._membership = membership
        self._serial += 1
        return RefitLink(
            transport=self._transport,
            stages=plan,
            num_receivers=self._receivers.num_receivers,
            host=self._control.host,
            port=self._control.port,
            group=self._group,
            serial=self._serial,
            bucket_bytes=self._config.bucket_mib * MIB,
            timeout_s=self._config.timeout_s,
            folder=self._folder,
            cast=self._cast,
        )

    def _send(self, link: RefitLink) -> list[dict[str, Any]]:
        with self._ending_others(link, "the training side failed"):
            done = self._workers.run_all("send_weights", link, self._observer)
        return [stats for stats in done if stats]

    def _receive(self, link: RefitLink, version: int) -> list[dict[str, Any]]:
        with self._ending_others(link, "the generating side failed"):
            return self._receivers.receive(link, version)

    @contextlib.contextmanager
    def _ending_others(self, link: RefitLink, what: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._control.abort(link.group, f"{what}: {error}")
            raise

    def _give_up(self, *errors: BaseException | None) -> NoReturn:
        """Raise the failure that the others follow from."""
        # Whoever is left of this membership has closed its connections.
        self._group = ""
        raise min(filter(None, errors), key=_consequence)

    def close(self) -> None:
        """Give the control store's port back."""
        self._control.close()


def _consequence(error: BaseException) -> int:
    """How likely another failure caused this one, for the choice of one to show."""
    if not isinstance(error, RefitError):
        return 0
    return 2 if isinstance(error, PeerFailed) else 1
