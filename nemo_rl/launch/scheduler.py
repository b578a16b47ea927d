"""The one place that asks SLURM about jobs: is it waiting, running, ended, forgotten?

SLURM 20.11 to 25, with and without accounting. The number of questions does not grow
with nodes or jobs. No answer, an empty answer and "no such job" are three things: a
controller that restarts must not look like a job that ended. Knows no run folders.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from nemo_rl.launch.slurm_text import (
    SACCT_FORMAT,
    SQUEUE_FORMAT,
    Job,
    parse_sacct,
    parse_scontrol,
    parse_squeue,
    parse_version,
)
from nemo_rl.utils import env
from nemo_rl.utils.exceptions import LaunchError

ASK_AGAIN_S = 2.0
ANSWER_LIMIT_S = 60.0
_CHANGES_OUTPUT = ("SQUEUE_", "SACCT_", "SCONTROL_", "SLURM_TIME_FORMAT")
"""Beginnings of variables by which users change what the commands print."""
_NO_SUCH_JOB = ("invalid job id", "no jobs in the system", "not found")


class SchedulerUnreachable(LaunchError):
    """SLURM's controller does not answer: nothing is known about any job."""


Key = TypeVar("Key")
Runner = Callable[[list[str]], subprocess.CompletedProcess[str]]


class Scheduler:
    """Asks SLURM, and asks again before it believes that there is nothing.

    Args:
        variables: laid over this process's environment, as a site's SBATCH_*.
        cwd: folder the commands run in.
        run: runs a command; for tests.
        sleep: waits; for tests.
    """

    def __init__(
        self,
        variables: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        *,
        run: Runner | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Ask nothing yet."""
        self._variables = dict(variables or {})
        self._cwd = cwd
        self._run = run or self._run_here
        self._sleep = sleep
        self._keeps_accounts = True

    # ---- capabilities, asked once

    @cached_property
    def version(self) -> tuple[int, int]:
        """Year and month of SLURM's version, (22, 5).

        Raises:
            LaunchError: SLURM is not installed, or older than 20.11.
        """
        text = self._run(["squeue", "--version"]).stdout
        version = parse_version(text)
        if version is not None and version < (20, 11):
            raise LaunchError(
                f"this is SLURM {version[0]}.{version[1]:02d}; 20.11 is the oldest "
                "that nemo_rl can ask."
            )
        # A rebuilt SLURM may call itself anything; it is taken for a new one.
        return version or (99, 0)

    @cached_property
    def can_name_containers(self) -> bool:
        """Whether srun has pyxis' options."""
        return "--container-image" in self._run(["srun", "--help"]).stdout

    # ---- questions

    def find(self, job_id: int) -> Job | None:
        """Return what is known of a job; None: SLURM has forgotten it, or never knew.

        None is said only after the controller answered twice that there is no such
        job, and accounting, where there is any, does not have it either.

        Raises:
            SchedulerUnreachable: no answer.
        """
        for attempt in range(2):
            if attempt:
                self._sleep(ASK_AGAIN_S)
            job = self._show(job_id) or self.accounts([job_id]).get(job_id)
            if job is not None:
                return job
        return None

    def mine(self, expected: Iterable[int] = ()) -> dict[int, Job]:
        """Return this user's jobs by number: one question for all that SLURM remembers.

        Args:
            expected: jobs believed to be alive. Where one is missing the question is
                asked once more, and then accounting, once for all that are missing.

        Raises:
            SchedulerUnreachable: no answer.
        """
        return self._ask(set(expected), lambda job: job.job_id)

    def named(self, labels: Iterable[str]) -> dict[str, Job]:
        """Return jobs by what sbatch calls them: "17", of an array's task "17_0".

        Those that are missing SLURM does not know (any more); it was asked as `mine`
        asks.

        Raises:
            SchedulerUnreachable: no answer.
        """
        wanted = set(labels)
        found = self._ask(wanted, lambda job: job.label, "--array")
        return {label: job for label, job in found.items() if label in wanted}

    def accounts(self, job_ids: Iterable[int]) -> dict[int, Job]:
        """Return what accounting knows of jobs; {} where it is switched off."""
        return {job.job_id: job for job in self._accounts(sorted(set(job_ids)))}

    def _ask(
        self, expected: set[Key], key: Callable[[Job], Key], *words: str
    ) -> dict[Key, Job]:
        """Ask the queue, again where an expected job is missing, then accounting."""
        jobs = {key(job): job for job in self._queue(*words)}
        if expected - set(jobs):
            self._sleep(ASK_AGAIN_S)
            jobs |= {key(job): job for job in self._queue(*words)}
        missing = expected - set(jobs)
        numbers = {int(str(name).partition("_")[0]) for name in missing}
        return jobs | {key(job): job for job in self._accounts(sorted(numbers))}

    # ---- orders

    def cancel(self, job_ids: Iterable[str]) -> None:
        """Cancel jobs ("17", "17_0") in one call; those that have ended are no error.

        Raises:
            LaunchError: SLURM refused, or did not answer.
        """
        numbers = list(dict.fromkeys(job_ids))
        if not numbers:
            return
        done = self._run(["scancel", *numbers])
        text = done.stderr.lower()
        harmless = ("already completing or completed", "invalid job id")
        if done.returncode and not any(words in text for words in harmless):
            raise LaunchError(f"scancel failed: {' '.join(done.stderr.split())}")

    # ---- commands

    def _queue(self, *words: str) -> list[Job]:
        # All states: for some minutes SLURM remembers how a job ended, too.
        who = f"--user={os.getuid()}"
        command = ["squeue", "--noheader", "--states=all", who, *words]
        done = self._run([*command, f"--format={SQUEUE_FORMAT}"])
        if done.returncode:
            raise _unreachable("squeue", done.stderr)
        return parse_squeue(done.stdout)

    def _show(self, job_id: int) -> Job | None:
        done = self._run(["scontrol", "--oneliner", "show", "job", str(job_id)])
        job = parse_scontrol(done.stdout)
        if job is None and not _says(done.stderr + done.stdout, _NO_SUCH_JOB):
            raise _unreachable("scontrol", done.stderr)
        return job

    def _accounts(self, job_ids: list[int]) -> list[Job]:
        if not job_ids or not self._keeps_accounts:
            return []
        numbers = ",".join(map(str, job_ids))
        command = ["sacct", "--parsable2", "--noheader", "--allocations"]
        try:
            done = self._run(
                [*command, f"--jobs={numbers}", f"--format={SACCT_FORMAT}"]
            )
        except LaunchError:
            self._keeps_accounts = False
            return []
        if done.returncode:
            # Switched off, or slurmdbd is down: the same to us, it tells nothing.
            self._keeps_accounts = "disabled" not in done.stderr
            return []
        return parse_sacct(done.stdout)

    def _run_here(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        variables = {
            name: value
            for name, value in env.inherited().items()
            if not name.startswith(_CHANGES_OUTPUT)
        }
        variables |= self._variables | {"LC_ALL": "C"}
        try:
            return subprocess.run(
                command,
                cwd=self._cwd,
                env=variables,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                capture_output=True,
                timeout=ANSWER_LIMIT_S,
                check=False,
            )
        except FileNotFoundError:
            raise LaunchError(
                f"{command[0]} is not installed here: run on a login node of the "
                "cluster. What a run wrote can be read without it: --no-slurm."
            ) from None
        except subprocess.TimeoutExpired:
            raise SchedulerUnreachable(
                f"{command[0]} did not answer in {ANSWER_LIMIT_S:.0f} s: is slurmctld "
                "busy or down? Try again; what a run wrote can be read without it: "
                "--no-slurm."
            ) from None


def _unreachable(command: str, text: str) -> SchedulerUnreachable:
    words = " ".join(text.split()) or "it said nothing"
    return SchedulerUnreachable(
        f"SLURM does not answer {command}: {words}. Nothing is known of the jobs until "
        "it does; what a run wrote can be read without it: --no-slurm."
    )


def _says(text: str, words: Iterable[str]) -> bool:
    return any(word in text.lower() for word in words)
