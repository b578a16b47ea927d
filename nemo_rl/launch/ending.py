"""The last seconds of an agent: tell who failed, end all processes, keep the logs.

Whoever notices a failure writes it down; the head then says how the job ends, and every
agent that reads this ends its processes and keeps its logs, all at the same time. Knows
nothing about what led here.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_rl.launch import failure as failures
from nemo_rl.launch.allocation import Allocation
from nemo_rl.launch.bulletin import EXIT_CODE, TOKEN, Bulletin
from nemo_rl.launch.evidence import (
    Witness,
    hidden,
    keep_logs,
    node_share,
    secret_values,
    worker_log,
)
from nemo_rl.launch.failure import Failure, last_lines
from nemo_rl.launch.processes import end_all
from nemo_rl.utils import env

JOB_LOG = "job.log"
"""In the run folder; where `slurm/job.sh` sends the job's output."""
EVIDENCE = "evidence"
EVIDENCE_S = 3.0
"""How long the head waits for what the failing node's kernel says."""
_ORDERLY = (0, 2)
"""Exit codes of jobs of which nobody needs Ray's logs."""


class Ending:
    """Ends one node's part of an attempt.

    Args:
        job: this node's share.
        board: the attempt's folder.
        run_dir: the run folder.
        temp_dir: node-local folder; removed.
    """

    def __init__(
        self,
        job: Allocation,
        board: Bulletin,
        *,
        run_dir: Path,
        temp_dir: Path,
    ) -> None:
        """Begin to watch what the kernel says."""
        self.job, self.board = job, board
        self.run_dir, self.temp_dir = run_dir, temp_dir
        self.witness = Witness()
        """What happens on this node."""
        self._secrets: list[bytes] = []

    def run(self, code: int, failure: Failure | None, *, grace_s: float) -> None:
        """Write down a failure, end every process below, keep logs, tidy up.

        Args:
            code: what this agent ends with; the head's is the job's.
            failure: what this agent noticed; None where it noticed none.
            grace_s: how long processes may take to end by themselves.
        """
        # The token before it is removed: no log may show it.
        self._secrets = secret_values(env.inherited(), self.board.path(TOKEN))
        mine = failure is not None and self._record(failure)
        if self.job.is_head:
            self.board.path(TOKEN).unlink(missing_ok=True)
            self.board.publish(EXIT_CODE, code)
        elif failure is not None:
            self.board.beat("failed", failure.summary)
        else:
            code = self.board.read(EXIT_CODE) or code
        first = failures.read(self.board.folder)
        if first is None or code in _ORDERLY:
            end_all(grace_s)
        else:
            if first.node == self.job.node_name and not mine:
                self._testify(first)
            end_all(0.0)
            self._tell(first, mine=mine)
            keep_logs(
                self._ray_logs,
                self.board.path(f"ray-logs-{self.job.node_name}"),
                room=node_share(self.job.num_nodes),
                secrets=self._secrets,
            )
        shutil.rmtree(self.temp_dir, ignore_errors=True)

    @property
    def _ray_logs(self) -> Path:
        return self.temp_dir / "session_latest" / "logs"

    def _record(self, failure: Failure) -> bool:
        """Write it down if it is the first, with what this node knows about it."""
        if failure.node == self.job.node_name:
            failure = self._knowing(failure, **self._testimony(failure))
        else:
            failure = failure.explained()
        kept = self.board.path(f"ray-logs-{failure.node}")
        failure = replace(failure, logs=str(kept))
        return failures.record(self.board.folder, self._without_secrets(failure))

    def _testimony(self, failure: Failure) -> dict[str, Any]:
        """What this node knows about a process of its own."""
        text = worker_log(self._ray_logs, failure.pid) if failure.pid else ""
        return {"kernel": self.witness.lines(), "lines": last_lines(text)}

    def _testify(self, first: Failure) -> None:
        """Tell the head, which has recorded it."""
        (self.board.folder / EVIDENCE).mkdir(mode=0o700, exist_ok=True)
        name = f"{EVIDENCE}/{self.job.node_name}.json"
        self.board.publish(name, self._testimony(first))

    def _knowing(
        self, failure: Failure, *, kernel: Sequence[str], lines: Sequence[str]
    ) -> Failure:
        lines = failure.lines or tuple(lines)
        return replace(failure, lines=lines).explained(kernel)

    def _tell(self, first: Failure, *, mine: bool) -> None:
        """Complete the record and print it, once per attempt."""
        # srun and the batch shell ran on the head: nobody prints our output then.
        lost_head = first.process == "node" and first.node == self.job.node_names[0]
        if not (mine if lost_head else self.job.is_head):
            return
        if mine:
            first = self._completed(first)
        text = first.block(attempt=self.board.folder.name)
        if lost_head:
            with (self.run_dir / JOB_LOG).open("a", encoding="utf-8") as log:
                print(text, file=log)
        else:
            print(text, flush=True)

    def _completed(self, first: Failure) -> Failure:
        testimony = self._testimony_of(first)
        if testimony:
            first = self._knowing(first, **testimony)
        first = self._without_secrets(first)
        failures.rewrite(self.board.folder, first)
        return first

    def _testimony_of(self, first: Failure) -> dict[str, Any]:
        """Wait a moment for what another node knows; {} if it does not say."""
        others = [name for name in self.job.node_names if name != self.job.node_name]
        if first.node not in others or first.process == "node":
            return {}
        deadline = time.monotonic() + EVIDENCE_S
        name = f"{EVIDENCE}/{first.node}.json"
        while (found := self.board.read(name)) is None:
            if time.monotonic() > deadline:
                return {}
            time.sleep(0.05)
        return found

    def _without_secrets(self, failure: Failure) -> Failure:
        def clean(text: str) -> str:
            return hidden(text.encode(), self._secrets).decode(errors="replace")

        return replace(
            failure,
            message=clean(failure.message),
            evidence=clean(failure.evidence),
            lines=tuple(map(clean, failure.lines)),
        )
