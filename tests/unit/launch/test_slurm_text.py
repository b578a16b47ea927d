"""Tests of nemo_rl.launch.slurm_text on what several versions of SLURM print."""

from __future__ import annotations

from datetime import datetime

import pytest

from nemo_rl.launch.slurm_text import (
    ENDED,
    SACCT_FORMAT,
    SQUEUE_FORMAT,
    parse_sacct,
    parse_scontrol,
    parse_squeue,
    parse_version,
    seconds_of,
)

SQUEUE = """\
17|17|RUNNING|2|59:12|0:48|2026-11-21T20:00:00|2026-11-21T19:59:58|gpu[001-002]|(null)|\
batch|None|grpo_llama8b
18|18|PENDING|4|1-04:00:00|0:00|2026-11-22T08:30:00|2026-11-21T20:00:01||\
afterany:17(unfulfilled)|batch|Dependency|grpo_llama8b
19|19|PENDING|1|UNLIMITED|0:00|N/A|2026-11-21T20:00:02|||long|\
(ReqNodeNotAvail, UnavailableNodes:gpu[003-004])|name|with a bar
20|5_0|CANCELLED|1|4:00:00|0:00|2026-11-21T20:00:03|2026-11-21T20:00:03|||batch|None|x
slurm_load_jobs: some warning
"""
SCONTROL_20_11 = (
    "JobId=17 JobName=grpo_llama8b UserId=ann(1000) GroupId=ann(1000) MCS_label=N/A "
    "Priority=4294901758 Nice=0 Account=(null) QOS=normal JobState=RUNNING Reason=None "
    "Dependency=(null) Requeue=1 Restarts=1 BatchFlag=1 Reboot=0 ExitCode=0:0 "
    "RunTime=00:01:00 TimeLimit=04:00:00 TimeMin=N/A SubmitTime=2026-11-21T20:00:00 "
    "EligibleTime=2026-11-21T20:00:00 AccrueTime=Unknown StartTime=2026-11-21T20:01:00 "
    "EndTime=2026-11-22T00:01:00 Deadline=N/A Partition=batch AllocNode:Sid=login1:99 "
    "ReqNodeList=(null) ExcNodeList=(null) NodeList=gpu[001-002] BatchHost=gpu001 "
    "NumNodes=2 NumCPUs=256 NumTasks=2 CPUs/Task=1 ReqB:S:C:T=0:0:*:* "
    "TRES=cpu=256,node=2,billing=256,gres/gpu=16 Comment=two words JobState=no "
    "Command=/h/x.sh grpo.seed=3 A=b WorkDir=/h/nemo rl Power=\n"
)
SCONTROL_24_05 = (
    "JobId=18 JobName=x UserId=ann(1000) GroupId=ann(1000) MCS_label=N/A Priority=1 "
    "Nice=0 QOS=normal JobState=OUT_OF_MEMORY,COMPLETING Reason=OutOfMemory "
    "Dependency=(null) Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:125 "
    "RunTime=1-00:00:05 TimeLimit=UNLIMITED TimeMin=N/A SubmitTime=2026-11-21T20:00:00 "
    "StartTime=2026-11-21T20:01:00 EndTime=2026-11-22T20:01:05 Partition=batch "
    "NodeList=gpu007 NumNodes=1-1 NumCPUs=8 LicensesAlloc=(null) "
    "SubmitLine=sbatch x.sh StepMgrEnabled=Yes\n"
)
SACCT = """\
17|17|COMPLETED|0:0|2|3600|2026-11-21T20:00:00|2026-11-21T20:01:00|2026-11-21T21:01:00|\
gpu[001-002]|grpo
17.batch|17.batch|COMPLETED|0:0|1|3600|2026-11-21T20:01:00|2026-11-21T20:01:00|Unknown|gpu001|b
18|18|CANCELLED by 1000|0:15|1|5|2026-11-21T20:00:00|2026-11-21T20:01:00|\
2026-11-21T20:01:05|gpu003|grpo
19|19|FAILED|2:0|1|5|2026-11-21T20:00:00|None|Unknown|None assigned|grpo
"""


def test_squeue():
    jobs = {job.job_id: job for job in parse_squeue(SQUEUE)}
    assert sorted(jobs) == [17, 18, 19, 20]
    running, waiting, odd = jobs[17], jobs[18], jobs[19]
    assert (running.state, running.nodes, running.num_nodes) == (
        "RUNNING",
        "gpu[001-002]",
        2,
    )
    assert (running.left_s, running.elapsed_s) == (59 * 60 + 12, 48)
    assert (running.dependency, running.reason) == ("", "")
    assert waiting.is_waiting
    assert waiting.dependency == "afterany:17(unfulfilled)"
    assert waiting.left_s == 28 * 3600
    assert waiting.started == datetime(2026, 11, 22, 8, 30)
    assert (odd.started, odd.left_s, odd.name) == (None, None, "name|with a bar")
    assert odd.reason == "(ReqNodeNotAvail, UnavailableNodes:gpu[003-004])"
    assert jobs[20].has_ended
    assert (running.label, jobs[20].label) == ("17", "5_0")


def test_formats_have_what_the_parsers_expect():
    assert SQUEUE_FORMAT.endswith("|%r|%j")
    assert SACCT_FORMAT.endswith(",JobName")


def test_scontrol_of_a_running_job():
    job = parse_scontrol(SCONTROL_20_11)
    assert (job.job_id, job.state, job.name) == (17, "RUNNING", "grpo_llama8b")
    assert (job.nodes, job.num_nodes) == ("gpu[001-002]", 2)
    assert job.left_s == 4 * 3600 - 60
    assert (job.exit_code, job.ended, job.dependency) == (0, None, "")
    assert job.label == "17"
    assert job.submitted == datetime(2026, 11, 21, 20)


def test_scontrol_of_an_ended_job_in_two_states():
    job = parse_scontrol(SCONTROL_24_05)
    assert (job.state, job.exit_code, job.left_s) == ("OUT_OF_MEMORY", 128 + 125, None)
    assert job.has_ended
    assert job.ended == datetime(2026, 11, 22, 20, 1, 5)
    assert job.num_nodes == 1


def test_scontrol_of_an_arrays_task():
    line = SCONTROL_20_11.replace("JobId=17 ", "JobId=17 ArrayJobId=15 ArrayTaskId=2 ")
    assert parse_scontrol(line).label == "15_2"


def test_scontrol_without_a_job():
    assert parse_scontrol("slurm_load_jobs error: Invalid job id specified\n") is None
    assert parse_scontrol("") is None


def test_sacct_leaves_steps_out():
    jobs = {job.job_id: job for job in parse_sacct(SACCT)}
    assert sorted(jobs) == [17, 18, 19]
    assert (jobs[17].exit_code, jobs[17].elapsed_s) == (0, 3600)
    assert (jobs[18].state, jobs[18].exit_code) == ("CANCELLED", 143)
    assert (jobs[19].started, jobs[19].nodes, jobs[19].exit_code) == (None, "", 2)


def test_a_requeued_job_is_known_by_its_last_line():
    earlier = SACCT.splitlines()[0].replace("COMPLETED", "REQUEUED") + "\n"
    found = [job.state for job in parse_sacct(earlier + SACCT) if job.job_id == 17]
    assert found == ["REQUEUED", "COMPLETED"]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("slurm 20.11.9\n", (20, 11)),
        ("slurm-wlm 22.05.8\n", (22, 5)),
        ("slurm 25.05.0-0rc1\n", (25, 5)),
        ("command not found", None),
    ],
)
def test_versions(text, version):
    assert parse_version(text) == version


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:00", 0),
        ("59:12", 3552),
        ("04:00:00", 14400),
        ("2-00:00:01", 172801),
        ("30", 1800),
        ("90:30", 5430),
        ("2-0", 172800),
        ("1-06:30", 109800),
        *((word, None) for word in ("UNLIMITED", "INVALID", "N/A", "", "NOT_SET")),
    ],
)
def test_times(text, seconds):
    assert seconds_of(text) == seconds


def test_states_that_go_on_are_no_end():
    going_on = {"PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "STOPPED"}
    assert not ENDED & going_on
