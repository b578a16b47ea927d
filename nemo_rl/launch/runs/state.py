"""What a run is doing: its folder and what SLURM says of its jobs, put together.

SLURM's word goes before that of the files, which a killed job cannot correct.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_rl.launch.runs.attempt import Attempt
from nemo_rl.launch.runs.find import unfolded
from nemo_rl.launch.runs.folder import RunFolder
from nemo_rl.launch.scheduler import Scheduler
from nemo_rl.launch.slurm_text import Job

EXPECTED_S = 24 * 3600.0
"""A run younger than this that SLURM does not list is asked for once more."""
FINAL = ("done", "failed", "cancelled", "stopped", "out of time")
"""States after which nothing happens any more."""
_COUNTING = ("RUNNING", "SUSPENDED", "STOPPED")
"""States in which an allocation has some of its time left."""
_ENDS = {
    "CANCELLED": "cancelled",
    "TIMEOUT": "out of time",
    "DEADLINE": "out of time",
    "COMPLETED": "done",
}
_REASONS = {
    "Priority": "other jobs have higher priority",
    "Resources": "the nodes it needs are busy",
    "Dependency": "it waits for another job",
    "DependencyNeverSatisfied": "the job it waits for did not end as required: cancel",
    "BeginTime": "its start time is not reached; after a requeue, up to two minutes",
    "JobHeldUser": "held by the user: scontrol release JOB",
    "JobHeldAdmin": "held by an administrator",
    "QOSMaxJobsPerUserLimit": "your quality of service allows no more jobs at once",
    "AssocGrpGRES": "the account's share of GPUs is in use",
    "ReqNodeNotAvail": "a node it needs is down, reserved or under maintenance",
    "PartitionTimeLimit": "its time limit is over the partition's",
    "PartitionNodeLimit": "it asks for more nodes than the partition gives",
    "PartitionDown": "the partition is down",
    "Reservation": "the nodes are reserved",
    "MaxRequeueHold": "SLURM requeued it too often: scontrol release JOB",
    "launch_failed_requeued_held": "its start failed: scontrol release JOB",
}


@dataclass(frozen=True)
class RunState:
    """A run now; `jobs` are those of its jobs that SLURM still knows."""

    run: RunFolder
    jobs: Mapping[int, Job]

    @cached_property
    def job(self) -> Job | None:
        """The job that matters: running, else waiting, else the last that ran."""
        known = [self.jobs[n] for n in self.run.job_ids if n in self.jobs]
        alive = [job for job in known if not job.has_ended]
        running = [job for job in alive if not job.is_waiting]
        began = {attempt.job_id for attempt in self.run.attempts}
        ended = [job for job in known if job.job_id in began] or known
        return next(iter(running or alive or ended[::-1]), None)

    @property
    def open_jobs(self) -> list[int]:
        """Numbers of its jobs that wait or run."""
        own = {n for n in self.run.job_ids if n in self.jobs}
        alive = {n for n in own if not self.jobs[n].has_ended}
        return sorted(alive)

    @cached_property
    def state(self) -> str:
        """One word: waiting, running, done, failed, cancelled, stopped, unknown ..."""
        job, attempts = self.job, self.run.attempts
        last = attempts[-1] if attempts else None
        if job is not None and not job.has_ended:
            if job.is_waiting:
                return "waiting"
            return job.state.lower().replace("_", " ")
        if last is not None and last.exit_code == 0:
            return "stopped" if self.run.was_stopped else "done"
        if job is not None and job.state in ("CANCELLED", "TIMEOUT", "DEADLINE"):
            return _ENDS[job.state]
        if last is not None and last.exit_code is not None:
            return "stopped" if last.exit_code == 75 else "failed"
        if job is not None:
            return _ENDS.get(job.state, "failed")
        if last is not None and last.seems_alive:
            return "running"
        training = self.run.training
        if not self.run.job_ids and training and training.total_steps == training.step:
            return "done"
        return "unknown"

    @property
    def brief(self) -> str:
        """`why` for a narrow table: why it waits is one word of SLURM's."""
        job = self.job
        return job.reason if job is not None and job.is_waiting else self.why

    @property
    def why(self) -> str:
        """Why it waits or how it ended; "" where there is nothing to say."""
        job, attempts = self.job, self.run.attempts
        if job is not None and job.is_waiting:
            words = _REASONS.get(job.reason, "")
            return f"{job.reason}: {words}" if words else job.reason
        if self.state == "unknown":
            if not self.run.job_ids:
                return "a run without SLURM, stopped or still at work"
            if not attempts:
                return "no attempt began, and SLURM does not know its jobs (any more)"
            return f"the last attempt {attempts[-1].outcome}"
        if self.state == "running":
            return "" if job else "by its signs of life; SLURM was not asked"
        if self.state == "stopped" and self.run.was_stopped:
            return "ended by the file STOP (nemo-rl stop)"
        if self.state in ("failed", "stopped") and attempts:
            return attempts[-1].outcome
        if self.state in ("failed", "out of time") and job:
            code = "" if not job.exit_code else f", exit code {job.exit_code}"
            return f"SLURM says {job.state}{code}"
        return ""

    def outcome(self, attempt: Attempt) -> str:
        """How an attempt ended, in words; of one that runs SLURM knows it first.

        A container that starts for minutes leaves no sign of life.
        """
        job = self.job
        runs = job is not None and not job.has_ended and not job.is_waiting
        last = attempt is self.run.attempts[-1]
        if runs and last and attempt.exit_code is None and not attempt.failure:
            return "running" if attempt.last_sign else "starting"
        return attempt.outcome

    @property
    def left_s(self) -> float | None:
        """Seconds left of the allocation; None if it does not run or has no limit."""
        job = self.job
        return job.left_s if job is not None and job.state in _COUNTING else None

    @property
    def submitted_at(self) -> float | None:
        """Seconds since 1970."""
        job = self.job
        if self.run.submitted_at is None and job is not None and job.submitted:
            return job.submitted.timestamp()
        return self.run.submitted_at

    def as_json(self) -> dict[str, Any]:
        """Everything that `status` shows, for programs; times in seconds since 1970."""
        run, job, training = self.run, self.job, self.run.training
        path, saved_at = run.checkpoint
        start = job.started.timestamp() if job and job.started else None
        return {
            "run": run.label,
            "folder": str(run.path),
            "log": str(run.log),
            "state": self.state,
            "why": self.why,
            "job_ids": run.job_ids,
            "job_id": job.job_id if job else None,
            "slurm_state": job.state if job else None,
            "reason": job.reason if job else None,
            "nodes": job.nodes if job else None,
            "num_nodes": (job.num_nodes if job else None) or run.facts.get("nodes"),
            "expected_start": start if job and job.is_waiting else None,
            "seconds_left": self.left_s,
            "submitted_at": self.submitted_at,
            "attempts": [
                {
                    "attempt": attempt.label,
                    "nodes": attempt.nodes,
                    "started_at": attempt.started_at,
                    "seconds": attempt.elapsed_s,
                    "exit_code": attempt.exit_code,
                    "outcome": self.outcome(attempt),
                    "failure": attempt.failure and attempt.failure.as_json(),
                }
                for attempt in run.attempts
            ],
            "step": training.step if training else None,
            "total_steps": training.total_steps if training else None,
            "metrics": dict(training.values) if training else {},
            "seconds_to_last_step": training.left_s if training else None,
            "checkpoint": path or None,
            "checkpoint_at": saved_at,
        }


def look(
    runs: Iterable[RunFolder],
    scheduler: Scheduler | None,
    *,
    root: Path | None = None,
) -> list[RunState]:
    """Put runs and their jobs together; a constant number of questions to SLURM.

    Args:
        runs: the folders.
        scheduler: None: nobody is asked, the files alone speak.
        root: the checkout: its waiting jobs that have no folder yet come first.

    Raises:
        SchedulerUnreachable: SLURM does not answer.
    """
    runs = list(runs)
    asked = root is not None or any(run.job_ids for run in runs)
    if scheduler is None or not asked:
        return [RunState(run, {}) for run in runs]
    open_runs = [run for run in runs if _may_be_open(run)]
    since = time.time() - EXPECTED_S
    young = {
        number
        for run in open_runs
        if (run.submitted_at or 0.0) > since
        for number in run.job_ids[-1:]
    }
    jobs = scheduler.mine(young)
    rest = {n for run in open_runs for n in run.job_ids} - set(jobs) - young
    jobs |= scheduler.accounts(rest)
    if root is not None:
        runs = [*unfolded(jobs.values(), runs, root), *runs]
    states = [RunState(run, jobs) for run in runs]
    if len(runs) == 1 and (number := _undecided(states[0])):
        # One run is worth one question more: scontrol knows exit codes.
        job = scheduler.find(number)
        states = [RunState(runs[0], {**jobs, number: job} if job else jobs)]
    return states


def _may_be_open(run: RunFolder) -> bool:
    """Whether SLURM may have more to say than the files."""
    if not run.attempts:
        return True
    return run.attempts[-1].exit_code in (None, 75)


def _undecided(state: RunState) -> int | None:
    job, numbers = state.job, state.run.job_ids
    if job is not None and job.has_ended and job.exit_code is None:
        return job.job_id
    if state.state == "unknown" and numbers:
        return numbers[-1]
    return None
