"""Tests of nemo_rl.launch.scheduler with recorded answers in the place of SLURM's.

A real slurmctld is asked in tests/slurm/test_runs.py.
"""

from __future__ import annotations

import subprocess

import pytest

from nemo_rl.launch.scheduler import Scheduler, SchedulerUnreachable
from nemo_rl.utils.exceptions import LaunchError

UNKNOWN = (1, "", "slurm_load_jobs error: Invalid job id specified")
SILENT = (
    1,
    "",
    "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
)
NO_ACCOUNTS = (1, "", "Slurm accounting storage is disabled")
EMPTY = (0, "", "")


def queue(*jobs):
    lines = [f"{n}|{n}|{state}|1|10:00|1:00|N/A|N/A|a1|||None|x" for n, state in jobs]
    return (0, "\n".join(lines) + "\n", "")


def shown(state, code="0:0"):
    return (0, f"JobId=17 JobName=x JobState={state} ExitCode={code} NumNodes=1\n", "")


def account(number, state, code="0:0"):
    return (
        0,
        f"{number}|{number}|{state}|{code}|1|60|Unknown|Unknown|Unknown|a1|x\n",
        "",
    )


class Answers:
    """Programs that answer as recorded, the last answer again and again."""

    def __init__(self, **answers):
        self.answers = {name: list(given) for name, given in answers.items()}
        self.asked = []
        self.slept = 0.0

    def __call__(self, command):
        self.asked.append(command)
        given = self.answers[command[0]]
        code, out, error = given.pop(0) if len(given) > 1 else given[0]
        return subprocess.CompletedProcess(command, code, out, error)

    def count(self, name):
        return sum(command[0] == name for command in self.asked)

    def scheduler(self):
        return Scheduler(run=self, sleep=self.sleep)

    def sleep(self, seconds):
        self.slept += seconds


def test_a_job_that_the_controller_knows():
    slurm = Answers(scontrol=[shown("FAILED", "2:0")])
    job = slurm.scheduler().find(17)
    assert (job.state, job.exit_code) == ("FAILED", 2)
    assert len(slurm.asked) == 1


def test_a_job_that_only_accounting_knows():
    slurm = Answers(scontrol=[UNKNOWN], sacct=[account(17, "COMPLETED")])
    assert slurm.scheduler().find(17).state == "COMPLETED"


def test_one_answer_of_no_such_job_is_not_believed():
    slurm = Answers(scontrol=[UNKNOWN, shown("RUNNING")], sacct=[NO_ACCOUNTS])
    assert slurm.scheduler().find(17).state == "RUNNING"
    assert slurm.slept > 0


def test_a_forgotten_job_is_none_after_two_questions():
    slurm = Answers(scontrol=[UNKNOWN], sacct=[NO_ACCOUNTS])
    assert slurm.scheduler().find(17) is None
    assert slurm.count("scontrol") == 2
    assert slurm.count("sacct") == 1, "accounting that is disabled stays so"


def test_silence_is_not_an_answer():
    slurm = Answers(scontrol=[SILENT], squeue=[SILENT], sacct=[NO_ACCOUNTS])
    with pytest.raises(SchedulerUnreachable, match=r"not answer scontrol.*--no-slurm"):
        slurm.scheduler().find(17)
    with pytest.raises(SchedulerUnreachable, match="not answer squeue"):
        slurm.scheduler().mine()


def test_one_question_for_all_jobs():
    slurm = Answers(squeue=[queue(*((n, "RUNNING") for n in range(1, 500)))])
    assert len(slurm.scheduler().mine(range(1, 500))) == 499
    assert len(slurm.asked) == 1


def test_an_empty_queue_is_asked_again_and_accounting_once():
    slurm = Answers(
        squeue=[EMPTY, queue((17, "RUNNING"))], sacct=[account(18, "TIMEOUT")]
    )
    jobs = slurm.scheduler().mine([17, 18, 19])
    assert {n: job.state for n, job in jobs.items()} == {17: "RUNNING", 18: "TIMEOUT"}
    assert (slurm.count("squeue"), slurm.count("sacct")) == (2, 1)
    assert "--jobs=18,19" in slurm.asked[-1]


def test_tasks_of_an_array_by_their_names():
    waiting = [f"42|42_{k}|PENDING|1|10:00|0:00|N/A|N/A||||None|x" for k in (1, 2)]
    running = "43|42_0|RUNNING|1|10:00|1:00|N/A|N/A|a1|||None|x"
    slurm = Answers(squeue=[(0, "\n".join([*waiting, running]), "")])
    jobs = slurm.scheduler().named(["42_0", "42_1"])
    assert {label: job.state for label, job in jobs.items()} == {
        "42_0": "RUNNING",
        "42_1": "PENDING",
    }
    assert (len(slurm.asked), "--array" in slurm.asked[0]) == (1, True)


def test_a_heterogeneous_job_is_known_by_its_leader():
    parts = [
        f"{17 + k}|17+{k}|RUNNING|1|10:00|1:00|N/A|N/A|a1|||None|x" for k in (1, 0)
    ]
    slurm = Answers(squeue=[(0, "\n".join(parts), "")])
    jobs = slurm.scheduler().named(["17"])
    assert [job.job_id for job in jobs.values()] == [17]
    assert len(slurm.asked) == 1


def test_a_task_that_the_queue_has_forgotten_is_in_the_accounts():
    told = (0, "43|42_0|COMPLETED|0:0|1|60|Unknown|Unknown|Unknown|a1|x\n", "")
    slurm = Answers(squeue=[EMPTY], sacct=[told])
    jobs = slurm.scheduler().named(["42_0", "42_1"])
    assert [(label, job.state) for label, job in jobs.items()] == [
        ("42_0", "COMPLETED")
    ]
    assert (slurm.count("squeue"), slurm.count("sacct")) == (2, 1)
    assert "--jobs=42" in slurm.asked[-1]


def test_cancelling_what_has_ended_is_no_error():
    slurm = Answers(
        scancel=[
            (
                1,
                "",
                "scancel: error: Kill job error on job id 17: "
                "Job/step already completing or completed",
            )
        ]
    )
    slurm.scheduler().cancel(["17", "17", "5_0"])
    assert slurm.asked == [["scancel", "17", "5_0"]]
    slurm.scheduler().cancel([])
    assert len(slurm.asked) == 1
    refused = Answers(scancel=[(1, "", "scancel: error: Access/permission denied")])
    with pytest.raises(LaunchError, match="permission denied"):
        refused.scheduler().cancel(["17"])


def test_versions_and_capabilities_are_asked_once():
    slurm = Answers(squeue=[(0, "slurm 22.05.8\n", "")], srun=[(0, "--overlap", "")])
    scheduler = slurm.scheduler()
    assert (scheduler.version, scheduler.version) == ((22, 5), (22, 5))
    assert not scheduler.can_name_containers
    assert len(slurm.asked) == 2
    with pytest.raises(LaunchError, match=r"SLURM 19\.05; 20\.11 is the oldest"):
        _ = Answers(squeue=[(0, "slurm 19.05.2", "")]).scheduler().version


def test_settings_of_the_user_do_not_change_the_answers(tmp_path, monkeypatch):
    program = tmp_path / "squeue"
    program.write_text("#!/bin/bash\nenv > seen\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    Scheduler({"SBATCH_PARTITION": "fast"}, tmp_path).mine()
    seen = (tmp_path / "seen").read_text()
    assert "SBATCH_PARTITION=fast" in seen
    assert "SQUEUE_PARTITION" not in seen
    assert "SLURM_TIME_FORMAT" not in seen


def test_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="squeue is not installed here"):
        Scheduler().mine()
