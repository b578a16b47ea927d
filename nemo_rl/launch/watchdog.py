"""The watchdog: a run in which nothing moves is told of, explained, saved and ended.

Every node's agent has a `NodeWatchdog`; the head's one decides. A run without agents
has a `LocalWatchdog`, a thread of the driver. What moves is counted by the processes
themselves (`utils.pulse`), so a long step is no hang as long as parts of it get done.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nemo_rl.distributed.rank import environment
from nemo_rl.infra import stacks
from nemo_rl.infra.hang import LIMIT, Stillness, Verdict, judge, limit_of, report
from nemo_rl.infra.stacks import Process
from nemo_rl.launch.bulletin import Bulletin
from nemo_rl.utils import env, pulse
from nemo_rl.utils.exceptions import Hung

FOLDER = "stacks"
"""In the attempt's folder: <node>.txt to read, <node>.json for the head."""
GATHER_S = 15.0
"""For the other nodes to write their stacks."""
SAVE_S = 120.0
"""For the driver to save what can be saved, before it is forced to end."""
LOOK_S = 2.0


class NodeWatchdog:
    """The watchdog of one node of a job.

    Args:
        board: the attempt's folder.
        names: all nodes, the head first.
        pulses: node-local folder in which the node's processes write their records.
    """

    def __init__(self, board: Bulletin, names: Sequence[str], pulses: Path) -> None:
        """Nothing is watched before `look` is called."""
        self._board, self._names, self._pulses = board, names, pulses
        self._answered = 0
        self._still = Stillness()
        self._gathering: tuple[str, float] | None = None
        self.verdict: Verdict | None = None
        """Why the run was ended; None while it was not."""
        self._ended_at = 0.0
        board.facts |= {"progress": 0, "ask": 0}

    def attend(self) -> None:
        """Every node, at every beat: say how far we are; write stacks if asked to."""
        self._board.facts["progress"] = stacks.progress(self._pulses)
        asked = self._board.node_status(self._names[0]).get("ask", 0)
        if asked > self._answered:
            self._answered = asked
            self._write_stacks(asked)

    def look(self) -> str:
        """The head, while the driver runs: return what is to be told, mostly "".

        Once the run has hung for too long `verdict` is set and the driver has been
        asked to save and end; see `overdue`.
        """
        if self.verdict is not None:
            stacks.send_hang(self._pulses)
            return ""
        if self._gathering is not None:
            return self._gather(*self._gathering)
        status = [self._board.node_status(name) for name in self._names]
        moved = tuple(one.get("progress", 0) for one in status)
        kind = self._still.look(moved, limit_of(stacks.records(self._pulses)))
        if kind:
            self._gathering = kind, time.monotonic() + GATHER_S
            self._board.facts["ask"] += 1
        return ""

    @property
    def overdue(self) -> bool:
        """Whether the driver was asked to end and has not in `SAVE_S`."""
        passed = time.monotonic() - self._ended_at
        return self.verdict is not None and passed > SAVE_S

    def _gather(self, kind: str, deadline: float) -> str:
        number = self._board.facts["ask"]
        said = [self._board.read(f"{FOLDER}/{name}.json") for name in self._names]
        answers = [s for s in said if s and s["number"] == number]
        if len(answers) < len(self._names) and time.monotonic() < deadline:
            return ""
        self._gathering = None
        found = [Process(**one) for answer in answers for one in answer["processes"]]
        verdict = judge(found)
        text = report(found, verdict, self._still)
        if kind == "hung":
            self.verdict, self._ended_at = verdict, time.monotonic()
            text += "\n    asking the driver to save what it can and to end"
        return f"{text}\n    all stacks: {self._board.path(FOLDER)}"

    def _write_stacks(self, number: int) -> None:
        found = stacks.ask(self._pulses, self._board.node)
        folder = self._board.path(FOLDER)
        folder.mkdir(mode=0o700, exist_ok=True)
        write_stacks(folder / f"{self._board.node}.txt", found)
        self._board.publish(
            f"{FOLDER}/{self._board.node}.json",
            {"number": number, "processes": [one.to_dict() for one in found]},
        )


class LocalWatchdog:
    """The watchdog of a run on this machine alone: a thread of its driver.

    Args:
        run_dir: where stacks.txt is written; None writes none.
        limit_s: for how long nothing may move.
    """

    def __init__(self, run_dir: Path | None, limit_s: float) -> None:
        """Choose a folder for the records of this machine's processes."""
        self._run_dir = run_dir
        self._limit_s = limit_s
        self._still = Stillness()
        self._folder = Path(tempfile.mkdtemp(prefix="nemo_rl-pulse-"))
        self._environment = environment({pulse.FOLDER: str(self._folder)})
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name="watchdog", daemon=True
        )

    def __enter__(self) -> LocalWatchdog:
        """Begin; processes started from now on take part."""
        self._environment.__enter__()
        pulse.start("driver", answers_hang=True, **{LIMIT: self._limit_s})
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join()
        pulse.stop()
        self._environment.__exit__(None, None, None)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S):
            limit_s = limit_of(stacks.records(self._folder))
            kind = self._still.look(stacks.progress(self._folder), limit_s)
            if kind:
                self._tell()
            if kind == "hung":
                self._end()
                return

    def _end(self) -> None:
        deadline = time.monotonic() + SAVE_S
        while time.monotonic() < deadline:
            stacks.send_hang(self._folder)
            if self._ended.wait(LOOK_S):
                return
        _say(f"the driver did not end in {SAVE_S:.0f} s: it is ended now")
        os._exit(Hung.exit_code)

    def _tell(self) -> None:
        found = stacks.ask(self._folder, socket.gethostname())
        text = report(found, judge(found), self._still)
        if self._run_dir is not None:
            path = self._run_dir / f"{FOLDER}.txt"
            write_stacks(path, found)
            text += f"\n    all stacks: {path}"
        _say(text)


@contextmanager
def watched(run_dir: Path | None, limit_s: float | None) -> Iterator[None]:
    """Watch the driver's run inside the block, or let the node's agent do it.

    Args:
        run_dir: folder of the run.
        limit_s: for how long nothing may move; None for ever.
    """
    if env.read(pulse.FOLDER):
        pulse.start("driver", answers_hang=True, **{LIMIT: limit_s})
        yield
        pulse.stop()
    elif limit_s is None:
        yield
    else:
        with LocalWatchdog(run_dir, limit_s):
            yield


def _say(text: str) -> None:
    print(f"nemo_rl watchdog: {text}", file=sys.stderr, flush=True)


def write_stacks(path: Path, processes: Sequence[Process]) -> None:
    """Write the stacks of processes for people."""
    parts = [
        f"==== {one.name}, process {one.pid} on {one.host}: {one.doing} for "
        f"{one.seconds:.0f} s{', ' if one.state else ''}{one.state}\n"
        f"{one.stack or '(it did not answer)'}"
        for one in processes
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
