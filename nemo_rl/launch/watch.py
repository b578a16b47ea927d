"""What an agent watches while it waits: its children, the other nodes, signals.

Knows no roles: `node.Agent` says what to wait for.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from nemo_rl.launch.account import of_hang, of_ray
from nemo_rl.launch.allocation import Allocation
from nemo_rl.launch.bulletin import EXIT_CODE, Bulletin
from nemo_rl.launch.failure import Failure
from nemo_rl.launch.processes import Child
from nemo_rl.launch.watchdog import NodeWatchdog
from nemo_rl.utils.exceptions import LaunchError

PREEMPT = "PREEMPT"
"""File in the run folder; `slurm/job.sh` makes it when SLURM warns of the end."""
TICK_S = 0.25
BEAT_S = 2.0
SILENCE_LIMIT_S = 30.0
ROLL_CALL_S = 12.0
REQUEUE = 75
STOPPED = 143
RAY_LINES = 500
"""Of its log, in which Ray says which of its daemons has ended."""

T = TypeVar("T")


class NodeLost(LaunchError):
    """A node or its Ray is gone: the job can only go on in a new attempt."""

    code = REQUEUE
    """What the agent ends with; `slurm/job.sh` requeues the job for it."""
    process = "agent"
    """Who noticed it, where nobody else is named."""
    failure: Failure | None = None
    """Who failed, where that is more than the message says."""

    def blame(self, node: str, phase: str) -> Failure:
        """Return who failed, as far as this node knows."""
        failure = self.failure or Failure(
            node=node, process=self.process, message=str(self), raised=True
        )
        return replace(failure, phase=phase)


class HeadLost(NodeLost):
    """The node that srun and the batch shell run on: nobody prints our output."""


class NodesFailed(NodeLost):
    """Nodes did not pass their checks: the next attempt shall have others."""

    process = "checks"


class StopRequested(LaunchError):
    """The batch shell asked the job to end before the driver could."""

    def __init__(self, message: str, code: int) -> None:
        """Keep the exit code that tells job.sh whether to requeue."""
        super().__init__(message)
        self.code = code


class Refused(StopRequested):
    """Another attempt would end alike: the recipe or the cluster has to change."""


class Watcher:
    """Waits for things, and raises as soon as they cannot come any more."""

    def __init__(
        self, allocation: Allocation, options: argparse.Namespace, bulletin: Bulletin
    ) -> None:
        """Watch for SIGUSR2, SIGTERM and SIGINT from now on."""
        self.job = allocation
        self.options = options
        self.bulletin = bulletin
        self.state = "starting"
        self.watchdog: NodeWatchdog | None = None
        """Notices a run that hangs; None before there is one."""
        self.patient = False
        """Whether a node that is lost is left to somebody else to notice."""
        self.ray: Child | None = None
        self.driver: Child | None = None
        self._signal: int | None = None
        self._asked = False
        self._next_beat = 0.0
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def say(self, text: str) -> None:
        """Print one line to the job's log."""
        print(f"[{self.job.node_name}] {text}", flush=True)

    @property
    def was_asked(self) -> bool:
        """Whether somebody, by now, wants the job to save and end."""
        told = self._asked or self._signal is not None
        return told or (self.options.run_dir / PREEMPT).exists()

    def ended(self) -> bool | None:
        """True once the head has said how the job ended, else None."""
        return True if self.bulletin.read(EXIT_CODE) is not None else None

    def until(
        self,
        ready: Callable[[], T | None],
        limit_s: float | None = None,
        otherwise: Callable[[], str] = str,
    ) -> T:
        """Wait for `ready` to return something, watching all that can go wrong.

        Raises:
            NodeLost: a child or node failed, or the time is up (`otherwise` says
                what was waited for).
            StopRequested: the batch shell asked for the end.
        """
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while (value := ready()) is None:
            self._check_ray()
            if time.monotonic() >= self._next_beat:
                self._next_beat = time.monotonic() + BEAT_S
                self._check_signals()
                if self.watchdog is not None:
                    self.watchdog.attend()
                self.bulletin.beat(self.state)
                self._check_peers()
                self._check_progress()
            if deadline is not None and time.monotonic() > deadline:
                raise NodeLost(otherwise())
            time.sleep(TICK_S)
        return value

    def _check_ray(self) -> None:
        if self.ray is None or self.ray.returncode is None:
            return
        if not self.job.is_head and self.ended():
            return
        lost = NodeLost(
            f"node {self.job.node_name}: Ray ended with exit code "
            f"{self.ray.returncode}:{self.ray.tail()}"
        )
        lost.failure = of_ray(
            self.job.node_name,
            self.ray.returncode,
            self.ray.last_lines(RAY_LINES),
            pid=self.ray.pid,
        )
        raise lost

    def _check_peers(self) -> None:
        """The head watches every node, a node watches the head."""
        if self.patient:
            return
        names = self.job.node_names
        peers = names[1:] if self.job.is_head else names[:1]
        for name in peers if self.job.is_head else ():
            status = self.bulletin.node_status(name)
            if status["state"] == "failed":
                text = status["message"].partition("\n")[0].rstrip(":")
                raise _lost(NodeLost(text), name, "agent")
        # Before it first reports, a node may still be unpacking a container.
        reported = [p for p in peers if self.bulletin.node_status(p)["beat"]]
        silent = self.bulletin.silent(reported, SILENCE_LIMIT_S)
        if silent and not self.ended():
            lost = (NodeLost if self.job.is_head else HeadLost)(
                f"node {', '.join(silent)} is lost: no sign of life for "
                f"{SILENCE_LIMIT_S:.0f} s"
            )
            raise _lost(lost, ", ".join(silent), "node")

    def call_roll(self) -> None:
        """Find out whether the driver failed because a node did.

        Ray tells the driver of a lost node before the silence limit has passed;
        a node that does not beat once more is the cause.
        """
        names = self.job.node_names[1:]
        before = {name: self.bulletin.node_status(name)["beat"] for name in names}

        def mute() -> list[str]:
            return [
                name
                for name in names
                if self.bulletin.node_status(name)["beat"] == before[name]
            ]

        deadline = time.monotonic() + ROLL_CALL_S
        self.until(lambda: None if mute() and time.monotonic() < deadline else True)
        if lost := ", ".join(mute()):
            text = f"node {lost} is lost: the driver failed and it does not answer"
            raise _lost(NodeLost(text), lost, "node")
        self._check_peers()  # One that failed says so with its last beat.

    def _check_progress(self) -> None:
        """The head, while its driver runs: does anything still move?"""
        dog = self.watchdog
        if dog is None or self.driver is None or self.driver.returncode is not None:
            return
        if text := dog.look():
            self.say(text)
        if dog.overdue and dog.verdict is not None:
            lost = NodeLost(f"{dog.verdict.text} The driver did not end when asked to.")
            lost.failure = of_hang(self.job.node_name, dog.verdict)
            raise lost

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signal = number

    def _check_signals(self) -> None:
        """USR2, TERM or the file PREEMPT ask the driver to save; INT ends us.

        KILL follows SLURM's TERM; until then all nodes stay, for the driver's sake.
        """
        number, self._signal = self._signal, None
        file = self.options.run_dir / PREEMPT
        if number == signal.SIGINT:
            raise StopRequested(f"stopped by signal {number}", STOPPED)
        if number == signal.SIGTERM and self.job.is_head:
            self.say("TERM: SLURM wants the nodes back")
            file.touch()  # Tells job.sh, too, that somebody asked.
        asked = number is not None or file.exists()
        if not asked or self._asked or not self.job.is_head:
            return
        if self.driver is None:
            raise StopRequested("asked to stop before training began", REQUEUE)
        self._asked = True
        self.say("asking the driver to save and end")
        self.driver.send(signal.SIGUSR2)


def _lost(error: NodeLost, node: str, process: str) -> NodeLost:
    error.failure = Failure(node=node, process=process, message=str(error))
    return error
