"""submitit with our text and our files: the executor, its Job, the state of jobs.

A job's result is not a pickle: it is what the run's folder says. States come from
`scheduler`. Import it by `submission`, which says how to install submitit.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError, JobPaths, UncompletedJobError
from submitit.slurm.slurm import SlurmExecutor, SlurmInfoWatcher, SlurmJob

from nemo_rl.launch.job import JobSpec
from nemo_rl.launch.runs.folder import JOB_LOG, RunFolder
from nemo_rl.launch.runs.logs import last_lines
from nemo_rl.launch.scheduler import Scheduler, SchedulerUnreachable
from nemo_rl.launch.script import render
from nemo_rl.launch.slurm_text import ENDED
from nemo_rl.launch.watch import REQUEUE
from nemo_rl.utils.exceptions import LaunchError

POLL_S = 15
"""Longest time between two questions about the states of jobs."""
ENOUGH_ANSWERS = 3
"""A job that so many answers of SLURM in a row do not name is forgotten."""
FORGOTTEN = "FORGOTTEN"
LOG_LINES = 20
"""How much of the log an error quotes."""


class StateWatcher(SlurmInfoWatcher):
    """Lets the scheduler ask for all registered jobs at once."""

    def __init__(self, scheduler: Scheduler | None = None) -> None:
        """Begin without an answer."""
        super().__init__(delay_s=POLL_S)
        self._scheduler = scheduler or Scheduler()
        self._unseen: dict[str, int] = {}

    def update(self) -> None:
        """Ask for the jobs that have not ended; a controller's silence is no answer."""
        self._last_status_check = time.time()
        wanted = self._registered - self._finished
        if not wanted:
            return
        self._num_calls += 1
        try:
            seen = self._scheduler.named(wanted)
        except SchedulerUnreachable:
            return
        for name in wanted:
            if name in seen:
                self._unseen.pop(name, None)
                self._tell(name, seen[name].state, seen[name].nodes)
                continue
            # To end a wait for good more is needed than to draw a table.
            self._unseen[name] = self._unseen.get(name, 0) + 1
            if self._unseen[name] >= ENOUGH_ANSWERS:
                self._tell(name, FORGOTTEN, "")
        self._finished |= {name for name in wanted if self.is_done(name, mode="cache")}

    def leave(self, job_id: str) -> None:
        """Ask no more for a job, as for an array, whose tasks are asked for."""
        self._registered.discard(job_id)

    def _tell(self, name: str, state: str, nodes: str) -> None:
        self._info_dict[name] = {"JobID": name, "State": state, "NodeList": nodes}

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether a job has ended; submitit takes CONFIGURING and the like for ends."""
        state = self.get_state(job_id, mode=mode)
        return state in ENDED or state == FORGOTTEN


class RunPaths(JobPaths):
    """submitit's paths of a job, with the run's own log."""

    run_dir: Path

    @property
    def stdout(self) -> Path:
        """The log of all attempts."""
        return self.run_dir / JOB_LOG


class Job(SlurmJob):
    """A submitted run: submitit's Job, whose result is what the run's folder says.

    Attributes:
        run_dir: the run's folder.
        overrides: what a sweep changed for this run.
        successors: ids of the further links of its chain.
        manifest: what was submitted.
        log_start: bytes of the log that earlier jobs of the run wrote.
    """

    watcher = StateWatcher()

    def __init__(
        self,
        folder: Path | str,
        job_id: str,
        tasks: Sequence[int] = (0,),
        *,
        run_dir: Path | None = None,
    ) -> None:
        """Watch a job that was submitted, by this process or another."""
        super().__init__(folder, job_id, tasks)
        self.successors: list[str] = []
        self.overrides: tuple[str, ...] = ()
        self.manifest: dict[str, Any] = {}
        self.log_start = 0
        self.run_dir = run_dir or Path(folder).parent / job_id

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self._paths.run_dir

    @run_dir.setter
    def run_dir(self, path: Path) -> None:
        paths = RunPaths(self._paths._folder, job_id=self.job_id)
        paths.run_dir = path
        self._paths = paths

    def skip_log(self) -> None:
        """Let `log_start` be the log's length now: what follows is this job's."""
        log = self.paths.stdout
        self.log_start = log.stat().st_size if log.exists() else 0

    @property
    def all_ids(self) -> list[str]:
        """Ids of all its jobs: of a chain, in order; else its own."""
        return [self.job_id, *self.successors]

    def add_successor(self, job_id: str) -> None:
        """Make a job the next link of this run."""
        self.successors.append(job_id)
        self.watcher.register_job(job_id)

    @property
    def state(self) -> str:
        """SLURM's word; of a chain, of the first link that has not ended."""
        for job_id in self.all_ids[:-1]:
            if not self.watcher.is_done(job_id):
                return self.watcher.get_state(job_id)
        return self.watcher.get_state(self.all_ids[-1])

    def done(self, force_check: bool = False) -> bool:
        """Whether it has ended for good: a requeued job has not, nor has a chain.

        Args:
            force_check: ask SLURM now, however long ago the last question was.
        """
        end = RunFolder(self.run_dir).end
        if end is not None and end[1] in self.all_ids:
            code, job_id = end
            if job_id == self.all_ids[-1] or code in (0, 2):
                return True  # Links that are left find nothing to do.
        mode = "force" if force_check else "standard"
        # Cancelled, the last link ends before the first one has.
        return all(self.watcher.is_done(job_id, mode=mode) for job_id in self.all_ids)

    def exit_code(self) -> int:
        """Wait for the end; return the run's exit code, 1 where SLURM ended it."""
        self.wait()
        code = self.summary()["exit_code"]
        if code is not None:
            return code
        return 0 if self.state == "COMPLETED" else 1

    def summary(self) -> dict[str, Any]:
        """Return what the run's folder says now; see `RunFolder.summary`."""
        run = RunFolder(self.run_dir)
        found = run.summary()
        if run.end is not None and run.end[1] not in self.all_ids:
            found["exit_code"] = None  # Of a job before this one, in the same folder.
        return {**found, "job_id": self.job_id, "state": self.state}

    def _get_outcome_and_result(self) -> tuple[str, Any]:
        """As submitit's, from our files: an end with 0 or 75 is a success."""
        found = self.summary()
        code = found["exit_code"]
        if code in (0, REQUEUE):
            return "success", found
        where = f"job {self.job_id} is {found['state']}; log: {self.paths.stdout}"
        log = self.paths.stdout
        last = "".join(last_lines(log, LOG_LINES)) if log.exists() else ""
        if code is None:
            raise UncompletedJobError(f"{where}\n{last}")
        return "error", f"exit code {code}; {where}\n{last}"

    def cancel(self, check: bool = True) -> None:
        """Cancel it; of a chain all links, the last ones first.

        Args:
            check: raise where scancel fails.
        """
        try:
            Scheduler().cancel(reversed(self.all_ids))
        except LaunchError:
            if check:
                raise


class RecipeExecutor(SlurmExecutor):
    """A SlurmExecutor whose submission file is the rendered recipe."""

    job_class = Job

    def __init__(self, folder: Path, spec: JobSpec) -> None:
        """Keep the job; `folder` takes the submission files."""
        super().__init__(folder)
        self.spec = spec

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return render(self.spec)

    def _num_tasks(self) -> int:
        return 1  # What the head says is the result; other nodes have none.

    def submit_recipe(self) -> Job:
        """Submit it; return its Job."""
        return self._submit_command("unused")


__all__ = ["FailedJobError", "Job", "RecipeExecutor", "UncompletedJobError"]
