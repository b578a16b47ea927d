"""ControlStore and Connection: how the processes of a transfer find and watch another.

The driver holds a small key-value store (torch's TCPStore) that every participant
connects to. Nothing large passes through it: who has come, whose turn it is, which
bucket is there, and why somebody gave up. A process that waits polls it, so that the
first failure ends every wait within a second, with its reason.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch.distributed as dist

from nemo_rl.backends.refit.base import RefitLink
from nemo_rl.utils.exceptions import NemoRLError, RefitError

_ABORT, _PROGRESS = "abort", "progress"
_CONNECT_S = 60.0
"""For a TCP connection to the driver, which listens already."""
_LOOK_EVERY_S = 0.25
"""How often a process that waits asks whether somebody gave up."""
_LONGEST_NAP_S = 0.02


class PeerFailed(RefitError):
    """Another participant gave up first, or the connection to it broke."""


def participants(link: RefitLink) -> list[str]:
    """Names of all that take part in a transfer."""
    stages = [f"stage {index}" for index in range(len(link.stages))]
    return [*stages, *(f"receiver {index}" for index in range(link.num_receivers))]


class ControlStore:
    """The store, in the driver's process.

    Args:
        address: this host as the participants see it.
    """

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.host = address
        self._store: Any = dist.TCPStore(
            address,
            0,
            is_master=True,
            wait_for_workers=False,
            timeout=datetime.timedelta(seconds=_CONNECT_S),
        )
        self.port: int = self._store.port

    def abort(self, group: str, reason: str) -> None:
        """End every wait of a group; the first reason given is kept."""
        self._store.compare_set(f"{group}/{_ABORT}", "", reason)

    def reason(self, group: str) -> str | None:
        """Why a group gave up; None if it did not."""
        key = f"{group}/{_ABORT}"
        return self._store.get(key).decode() if self._store.check([key]) else None

    def close(self) -> None:
        """Stop listening."""
        self._store = None

    def forget(self, link: RefitLink) -> None:
        """Remove what a finished transfer left."""
        for name in participants(link):
            self._store.delete_key(f"{link.group}/{link.serial}/here/{name}")
        for stage in range(len(link.stages)):
            self._store.delete_key(f"{link.group}/{link.serial}/sent/{stage}")
        self._store.delete_key(f"{link.group}/{link.serial}/{_PROGRESS}")


class Connection:
    """One participant's connection to the store and to its group.

    Attributes:
        who: this participant, such as ``stage 0`` or ``receiver 1``.
        store: torch's store, all keys below the group's name.
        process_groups: sending stage -> torch process group, made when first used.
    """

    def __init__(self, link: RefitLink, who: str) -> None:
        self.who, self.link = who, link
        self.process_groups: dict[int, Any] = {}
        wait = datetime.timedelta(seconds=min(_CONNECT_S, link.timeout_s))
        try:
            client = dist.TCPStore(
                link.host, link.port, wait_for_workers=False, timeout=wait
            )
        except dist.DistError as error:
            raise RefitError(
                f"{who} cannot reach the driver of the weight transfer at "
                f"{link.host}:{link.port}: {_first_line(error)}. That port of the "
                "driver's host must be open to all nodes of the run."
            ) from None
        self.store: Any = dist.PrefixStore(link.group, client)

    def arrive(self, **facts: Any) -> None:
        """Say that this participant takes part in the transfer, and where it is."""
        here = {"host": socket.gethostname(), "pid": os.getpid(), **facts}
        self.set(f"here/{self.who}", json.dumps(here))

    def facts(self, who: Sequence[str], *, purpose: str) -> list[dict[str, Any]]:
        """Wait for others to arrive; where they are."""
        keys = [f"here/{name}" for name in who]
        self.wait(keys, f"the others, to {purpose}", peers=who)
        return [json.loads(self.get(key)) for key in keys]

    def set(self, key: str, value: str) -> None:
        """Write a key of this transfer."""
        with self._reachable():
            self.store.set(self._key(key), value)

    def get(self, key: str) -> str:
        """Read a key of this transfer that is known to exist."""
        with self._reachable():
            return self.store.get(self._key(key)).decode()

    def peek(self, key: str) -> str | None:
        """As ``get``; None for a key that does not exist."""
        with self._reachable():
            full = self._key(key)
            return self.store.get(full).decode() if self.store.check([full]) else None

    def add(self, key: str) -> int:
        """Count one up; the new count."""
        with self._reachable():
            return self.store.add(self._key(key), 1)

    def delete(self, *keys: str) -> None:
        """Remove keys of this transfer."""
        with self._reachable():
            for key in keys:
                self.store.delete_key(self._key(key))

    def progress(self, text: str) -> None:
        """Say what has just been done; whoever waits begins to count anew."""
        self.set(_PROGRESS, text)

    def wait(self, keys: Sequence[str], what: str, *, peers: Sequence[str]) -> None:
        """Wait until all keys exist.

        Args:
            keys: of this transfer.
            what: what they stand for, for the error.
            peers: participants of whom it is expected.

        Raises:
            RefitError: they did not come, or somebody gave up.
        """
        full = [self._key(key) for key in keys]

        def exist() -> bool:
            with self._reachable():
                return self.store.check(full)

        self.poll(exist, what, peers=peers)

    def poll(
        self, done: Callable[[], bool], what: str, *, peers: Sequence[str]
    ) -> None:
        """As ``wait`` for a condition."""
        nap, begin = 5e-5, time.monotonic()
        last_look, moved, seen = begin, begin, None
        while not done():
            now = time.monotonic()
            if now - last_look >= min(_LOOK_EVERY_S, self.link.timeout_s / 4):
                last_look = now
                self.raise_if_aborted()
                text = self.peek(_PROGRESS)
                if text != seen:
                    seen, moved = text, now
                if now - moved > self.link.timeout_s:
                    raise RefitError(self._late(what, now - begin, seen, peers))
            time.sleep(nap)
            nap = min(nap * 1.3, _LONGEST_NAP_S)

    def raise_if_aborted(self) -> None:
        """Raise if somebody gave up.

        Raises:
            PeerFailed: with the reason that was given.
        """
        with self._reachable():
            if not self.store.check([_ABORT]):
                return
            reason = self.store.get(_ABORT).decode()
        raise PeerFailed(
            f"{self.who} stopped its part of the weight transfer: {reason}"
        )

    def give_up(self, error: BaseException) -> None:
        """Tell the others why, and leave; the first reason of a group is kept."""
        # A driver that is gone ends the others itself.
        with contextlib.suppress(dist.DistError):
            reason = f"{self.who}: {_summary(error)}"
            self.store.compare_set(_ABORT, "", reason)
        self.close()

    def close(self) -> None:
        """Leave the group; peers that are in the middle of something notice."""
        _OPEN.pop((self.link.group, self.who), None)
        while self.process_groups:
            self.process_groups.popitem()[1].abort()

    def _key(self, key: str) -> str:
        return f"{self.link.serial}/{key}"

    def _late(
        self, what: str, waited: float, progress: str | None, peers: Sequence[str]
    ) -> str:
        with self._reachable():
            absent = [
                name
                for name in participants(self.link)
                if not self.store.check([self._key(f"here/{name}")])
            ]
        if absent:
            state = f"{', '.join(absent)} never came"
        elif progress:
            state = f"the last that moved was: {progress}"
        else:
            state = f"{', '.join(peers)} came and then did nothing"
        return (
            f"{self.who} waited {waited:.3g} s for {what}; {state}. Look at the log of "
            "the process that is waited for; if it is only slow, raise "
            "policy.generation.refit.timeout_s."
        )

    @contextlib.contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except dist.DistError as error:
            raise PeerFailed(
                f"{self.who} has lost the driver of the weight transfer at "
                f"{self.link.host}:{self.link.port}: {_first_line(error)}"
            ) from None


_OPEN: dict[tuple[str, str], Connection] = {}
"""(group, participant) -> the connection of this process, kept between transfers."""


def connect(link: RefitLink, who: str) -> Connection:
    """The connection of a participant: that of the last transfer, or a new one.

    Connections of earlier memberships of the same group family (the part of its name
    before the last dot) are closed.

    Raises:
        RefitError: the driver cannot be reached.
    """
    family = link.group.rpartition(".")[0]
    for (group, name), old in list(_OPEN.items()):
        if name == who and group != link.group and group.rpartition(".")[0] == family:
            old.close()
    connection = _OPEN.get((link.group, who))
    if connection is None:
        connection = _OPEN[link.group, who] = Connection(link, who)
    connection.link = link
    return connection


def _summary(error: BaseException) -> str:
    """What others are told of an error."""
    if isinstance(error, GeneratorExit):
        return "stopped before it had all weights"
    if isinstance(error, NemoRLError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
