"""Tests of nemo_rl.launch.runs on run folders, with small programs for SLURM's.

Real jobs are in tests/slurm/test_runs.py.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time

import pytest
from rich.console import Console

from nemo_rl.launch import site
from nemo_rl.launch.__main__ import main
from nemo_rl.launch.bulletin import Bulletin
from nemo_rl.launch.failure import Failure, record
from nemo_rl.launch.runs.attach import container_words
from nemo_rl.launch.runs.cancel import dependents
from nemo_rl.launch.runs.find import all_runs, find_run
from nemo_rl.launch.runs.folder import RunFolder
from nemo_rl.launch.runs.report import differences, render
from nemo_rl.launch.runs.state import RunState
from nemo_rl.launch.runs.view import draw_run, draw_table
from nemo_rl.launch.slurm_text import Job
from nemo_rl.utils.exceptions import LaunchError

QUEUE = "{job}|{job}|{state}|2|59:00|1:00|N/A|N/A|{nodes}|{after}|batch|{reason}|x"


def write_attempt(run, job, number, *, code=None, failure="", nodes=("n0", "n1")):
    folder = run / "attempts" / f"{job}.{number}"
    began = time.time() - 3600
    for name in nodes:
        Bulletin(folder, name, ip="198.18.0.1").beat("training")
    facts = {"job_id": job, "node_names": nodes, "num_gpus": 8, "started_at": began}
    (folder / "attempt.json").write_text(json.dumps(facts))
    if code is not None:
        (folder / "exit_code").write_text(str(code))
    if failure:
        record(folder, Failure(node="n1", process="node", message=failure))
    with (run / "job.log").open("a") as log:
        print(f"2026-11-21 20:00:00 job {job}: attempt {number}: x on n[0-1]", file=log)
        print(f"words of {job}.{number}", file=log)
    return folder


def write_run(root, name="x/17", *, steps=4, total=10):
    run = root / "results" / name
    (run / "logs").mkdir(parents=True)
    text = (
        "algorithm: grpo\n"
        f"grpo: {{max_num_steps: {total}}}\n"
        "policy: {model_name: tiny, learning_rate: 3.0e-05}\n"
        f"logger: {{log_dir: {run}/logs}}\n"
    )
    (run / "resolved.yaml").write_text(text)
    rows = [{"step": 0, "val/accuracy": 0.5}]
    for step in range(1, steps + 1):
        row = {"step": step, "time": "2026-11-21T20:00:00+00:00"}
        rows.append(row | {"train/reward": step / 10, "timing/step_s": 2.0})
    lines = [json.dumps(row) for row in rows]
    (run / "logs" / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 9')
    return run


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout in which commands are given."""
    for name in ("slurm", "launch", "recipes"):
        (tmp_path / name).symlink_to(site.root_dir() / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nemo_rl.launch.scheduler.ASK_AGAIN_S", 0.01)
    return tmp_path


@pytest.fixture
def slurm(root, monkeypatch):
    """Return a function that says what the queue holds; orders are in `orders`."""
    folder = root / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(name, body):
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)

    version = 'case "$*" in *--version*) echo slurm 22.05.8; exit;; esac;'
    put("squeue", f"{version} echo x >> {root}/asked; cat {root}/queue")
    put("sacct", 'echo "Slurm accounting storage is disabled" >&2; exit 1')
    put("scontrol", 'echo "Invalid job id specified" >&2; exit 1')
    put("scancel", f'echo "$@" >> {root}/orders')

    def queue(*lines):
        (root / "queue").write_text("".join(line + "\n" for line in lines))

    queue()
    return queue


def line(job, state="RUNNING", *, nodes="n[0-1]", after="", reason="None"):
    return QUEUE.format(job=job, state=state, nodes=nodes, after=after, reason=reason)


def drawn(what, width=130):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(what)
    return console.export_text()


# ---- which run


def test_a_run_is_found_by_number_label_path_and_inside(root):
    run = write_run(root)
    write_attempt(run, 17, 0)
    write_attempt(run, 18, 0)
    for text in ("17", "18", "x/17", "results/x/17", str(run), f"{run}/attempts/17.0"):
        assert find_run(text, root).path == run


def test_a_run_elsewhere_is_found_by_its_jobs_output(root):
    elsewhere = write_run(root / "far")
    (root / "slurm-x-23.log").write_text(
        f"2026-11-21 20:00:00 job 23: attempt 0 on n0; log in {elsewhere}/job.log\n"
    )
    assert find_run("23", root).path == elsewhere


def test_a_wrong_run_names_those_there_are(root):
    with pytest.raises(LaunchError, match=r"no run 99: .* holds none"):
        find_run("99", root)
    write_run(root)
    write_run(root, "grpo/18")
    with pytest.raises(LaunchError, match=r"Its runs: grpo/18\. Expected a job's"):
        find_run("grpo", root)
    with pytest.raises(LaunchError, match=r"Did you mean .*grpo/18"):
        find_run("grpo/19", root)


def test_the_newest_run_comes_first(root):
    write_attempt(write_run(root, "x/1"), 1, 0)
    time.sleep(0.01)
    write_attempt(write_run(root, "y/2"), 2, 0)
    assert [run.label for run in all_runs(root)] == ["y/2", "x/1"]


# ---- what a folder says


def test_progress_of_a_run_beside_a_torn_line(root):
    run = RunFolder(write_run(root))
    training = run.training
    assert (training.step, training.total_steps, training.value) == (4, 10, 0.4)
    assert (training.headline, training.left_s) == ("reward", 12.0)
    assert run.curve() == ("reward", [0.1, 0.2, 0.3, 0.4])


def test_attempts_say_how_they_ended(root):
    path = write_run(root)
    write_attempt(path, 17, 0, code=75)
    write_attempt(path, 17, 1, failure="node n1 is lost: no sign of life")
    write_attempt(path, 17, 2, code=0)
    write_attempt(path, 17, 10)
    run = RunFolder(path)
    assert [attempt.label for attempt in run.attempts] == [
        *("17.0", "17.1", "17.2", "17.10")
    ]
    assert [attempt.outcome for attempt in run.attempts] == [
        "saved, to be continued",
        "node n1 is lost: no sign of life",
        "done",
        "running",
    ]
    assert run.node_hours() == pytest.approx(8, abs=0.01)


def test_a_silent_attempt_was_ended_by_slurm(root):
    path = write_run(root)
    folder = write_attempt(path, 17, 0)
    for status in (folder / "nodes").iterdir():
        os.utime(status, (1, 1))
    attempt = RunFolder(path).attempts[0]
    assert not attempt.seems_alive
    assert attempt.outcome.startswith("ended by SLURM")


# ---- folder and SLURM together


def job(state, number=17, **fields):
    return Job(job_id=number, state=state, **fields)


@pytest.mark.parametrize(
    ("codes", "jobs", "state"),
    [
        ([], [job("PENDING")], "waiting"),
        ([], [job("CONFIGURING")], "configuring"),
        ([None], [job("RUNNING")], "running"),
        ([75], [job("PENDING")], "waiting"),
        ([75], [job("FAILED", exit_code=75)], "stopped"),
        ([75], [job("CANCELLED")], "cancelled"),
        ([0], [job("COMPLETED")], "done"),
        ([0], [job("COMPLETED"), job("CANCELLED", 18)], "done"),
        ([75], [job("FAILED"), job("PENDING", 18)], "waiting"),
        ([75], [job("FAILED"), job("CANCELLED", 18)], "stopped"),
        ([1], [job("FAILED")], "failed"),
        ([143], [job("CANCELLED")], "cancelled"),
        ([None], [job("TIMEOUT")], "out of time"),
        ([None], [job("NODE_FAIL")], "failed"),
        ([None], [], "running"),
        ([1], [], "failed"),
        ([], [], "unknown"),
    ],
)
def test_states(root, codes, jobs, state):
    path = write_run(root)
    for number, code in enumerate(codes):
        write_attempt(path, 17, number, code=code)
    (path / "run.json").write_text(json.dumps({"jobs": [17, 18]}))
    known = {job.job_id: job for job in jobs}
    assert RunState(RunFolder(path), known).state == state


def test_a_run_that_waits_says_why_and_when(root):
    path = write_run(root)
    job_ = job("PENDING", reason="Resources", num_nodes=2, partition="batch")
    text = drawn(draw_run(RunState(RunFolder(path), {17: job_})))
    assert "waiting   Resources: the nodes it needs are busy" in text
    assert "SLURM gives no estimate yet" in text
    assert "17, 2 nodes, partition batch" in text


def test_the_panel_and_the_table_of_a_running_run(root):
    path = write_run(root)
    write_attempt(path, 17, 0, code=75)
    write_attempt(path, 17, 1)
    (path / "PROGRESS").write_text(f"{path}/checkpoints/step_000003\n")
    job_ = job("RUNNING", left_s=5, nodes="n[0-1]", num_nodes=2)
    state = RunState(RunFolder(path), {17: job_})
    text = drawn(draw_run(state))
    assert "step 4/10  40%   2.000 s a step" in text
    assert "0:12  more than the allocation has left" in text
    assert "checkpoints/step_000003  0 s ago" in text
    assert "▁" in text
    assert "saved, to be continued" in text
    row = next(x for x in drawn(draw_table([state], 130)).splitlines() if "x/17" in x)
    assert row.split()[:7] == [
        *("x/17", "running", "2", "4/10", "0:05", "reward", "0.4000")
    ]


def test_a_narrow_terminal_has_whole_names(root):
    name = "a_recipe_with_a_long_name/" + "1" * 20
    state = RunState(RunFolder(write_run(root, name)), {})
    text = drawn(draw_table([state], 80), width=80)
    assert name in text
    assert "reward" not in text


# ---- commands


def test_status_of_all_runs_asks_slurm_once(root, slurm, capsys):
    for number in (17, 18, 19):
        write_attempt(write_run(root, f"x/{number}"), number, 0)
    slurm(line(17), line(18), line(19), line(20, "PENDING").replace("|x", "|eval"))
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert [n for n in (17, 18, 19, 20) if f"x/{n}" in out] == [17, 18, 19]
    assert (root / "asked").read_text() == "x\n"


def test_status_knows_a_recipe_that_was_submitted_by_hand(root, slurm, capsys):
    waiting = line(31, "PENDING", nodes="", reason="Priority")
    slurm(waiting.removesuffix("x") + "grpo_llama8b")
    assert main(["status", "--json"]) == 0
    (state,) = json.loads(capsys.readouterr().out)
    assert (state["run"], state["state"]) == ("grpo_llama8b/31", "waiting")
    assert state["why"] == "Priority: other jobs have higher priority"


def test_status_without_slurm_reads_files(root, capsys):
    write_attempt(write_run(root), 17, 0, code=0)
    assert main(["status", "17", "--no-slurm", "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert (state["state"], state["step"], state["job_id"]) == ("done", 4, None)


def test_status_does_not_take_silence_for_an_end(root, slurm, capsys):
    write_attempt(write_run(root), 17, 0)
    (root / "bin" / "squeue").write_text(
        "#!/bin/bash\necho 'Unable to contact slurm controller' >&2; exit 1\n"
    )
    assert main(["status", "17"]) == 2
    assert "SLURM does not answer squeue: Unable to" in capsys.readouterr().err


def test_logs_of_one_attempt_and_the_end(root, capsys):
    path = write_run(root)
    for number in range(3):
        write_attempt(path, 17, number, code=75)
    assert main(["logs", "17", "--attempt", "17.1"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["words of 17.1"]
    assert main(["logs", "17", "--tail", "1"]) == 0
    assert capsys.readouterr().out == "words of 17.2\n"
    assert main(["logs", "17", "--attempt", "7"]) == 2
    assert "Attempts: 17.0, 17.1, 17.2." in capsys.readouterr().err


def test_logs_of_a_node(root, capsys):
    folder = write_attempt(write_run(root), 17, 0, code=75)
    (folder / "ray-n1.log").write_text("a\nb\n")
    (folder / "ray-logs-n1").mkdir()
    (folder / "ray-logs-n1" / "worker-1.err").write_text("out of memory\n")
    assert main(["logs", "17", "--node", "n1", "--tail", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [x for x in lines if "==>" not in x] == ["b", "out of memory"]
    assert main(["logs", "17", "--node", "n7"]) == 2
    assert "Its nodes: n[0-1]." in capsys.readouterr().err


def test_reading_stops_where_the_reader_does(root):
    path = write_run(root)
    write_attempt(path, 17, 0)
    with (path / "job.log").open("a") as log:
        log.write("x" * 79 + "\n" + "y\n" * 100_000)
    command = f"{sys.executable} -m nemo_rl.launch logs 17 | head -n 1"
    variables = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        env=variables,
        check=True,
    )
    assert "attempt 0" in done.stdout
    assert done.stderr == ""


def test_an_attempt_that_starts_is_not_over(root, slurm, capsys):
    path = write_run(root)
    (path / "attempts" / "17.0").mkdir(parents=True)
    slurm(line(17))
    assert main(["status", "17"]) == 0
    first = capsys.readouterr().out
    assert "starting" in first and "ended by SLURM" not in first
    # No sign for minutes, but SLURM says that it runs.
    folder = write_attempt(path, 17, 0)
    for status in folder.rglob("*.json"):
        os.utime(status, (1, 1))
    assert main(["report", "17"]) == 0
    assert "ended by SLURM" not in capsys.readouterr().out
    slurm(line(17, "TIMEOUT"))
    assert main(["report", "17"]) == 0
    assert "ended by SLURM" in capsys.readouterr().out


def test_a_narrow_table_says_why_in_a_word(tmp_path):
    run = RunFolder(write_run(tmp_path))
    state = RunState(run, {17: job("PENDING", reason="Resources")})
    assert "the nodes it needs are busy" in drawn(draw_table([state], 130))
    narrow = drawn(draw_table([state], 80), 80)
    assert "Resources" in narrow and "busy" not in narrow


def test_an_empty_folder_tells_nothing(tmp_path):
    run = RunFolder(tmp_path)
    assert run.end is None
    assert run.summary() == {
        "exit_code": None,
        "step": None,
        "checkpoint": None,
        "metrics": {},
        "run_dir": str(tmp_path),
    }


def test_a_summary_has_all_metrics_of_the_last_step(tmp_path):
    rows = [
        '{"step": 1, "train/loss": 2}',
        '{"step": 2, "train/loss": 1, "time": "t"}',
        '{"step": 2, "time": "t", "validation/accuracy": 0.5}',
        '{"ste',
    ]
    # An absolute log_dir, as a recipe may give it.
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "metrics.jsonl").write_text("\n".join(rows))
    (tmp_path / "resolved.yaml").write_text(f"logger: {{log_dir: {tmp_path}/far}}\n")
    (tmp_path / "EXIT_CODE").write_text("75 42_1\n")
    (tmp_path / "PROGRESS").write_text("/runs/step_2\n")
    run = RunFolder(tmp_path)
    assert run.end == (75, "42_1")
    assert run.summary() == {
        "exit_code": 75,
        "step": 2,
        "checkpoint": "/runs/step_2",
        "metrics": {"train/loss": 1, "validation/accuracy": 0.5},
        "run_dir": str(tmp_path),
    }


def test_attach_names_node_and_ray(root, slurm, capsys):
    path = write_run(root)
    folder = write_attempt(path, 17, 0)
    (folder / "head.json").write_text('{"address": "198.18.0.1:10001"}')
    slurm(line(17))
    assert main(["attach", "17", "--node", "n1", "--dry-run"]) == 0
    words = capsys.readouterr().out.split()
    assert words[:4] == ["srun", "--jobid=17", "--overlap", "--nodelist=n1"]
    assert words[-2:] == ["bash", "-l"]
    assert "RAY_ADDRESS=198.18.0.1:10001" in words
    assert f"RAY_AUTH_TOKEN_PATH={folder}/ray_token" in words
    assert main(["attach", "17", "--node", "n9", "--dry-run"]) == 2
    slurm(line(17, "PENDING"))
    assert main(["attach", "17", "--dry-run"]) == 2
    assert "x/17 is waiting: a shell needs a job that runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("runtime", "options", "before"),
    [
        ("none", [], []),
        (
            "pyxis",
            ["--container-image=/i.sqsh", "--container-mounts=", "--no-container"],
            ["env", "PYTHONNOUSERSITE=1"],
        ),
        (
            "apptainer",
            [],
            ["apptainer", "exec", "--bind", "--pwd", "--nv", "/i.sqsh", "env"],
        ),
    ],
)
def test_attach_enters_the_container(root, runtime, options, before):
    path = write_run(root)
    folder = write_attempt(path, 17, 0)
    facts = json.loads((folder / "attempt.json").read_text())
    facts["environment"] = {
        "NEMO_RL_ROOT": str(root),
        "NEMO_RL_CONTAINER_RUNTIME": runtime,
        "NEMO_RL_CONTAINER": "/i.sqsh",
        "NEMO_RL_TMPDIR": "/scratch",
    }
    (folder / "attempt.json").write_text(json.dumps(facts))
    run = RunFolder(path)
    found, words = container_words(run, run.attempts[0], root)
    assert bool(found) == bool(options)
    assert all(any(x.startswith(option) for x in found) for option in options)
    assert [word for word in words if word in before] == before
    mounts = " ".join([*found, *words])
    assert runtime == "none" or f"{path}:{path},/scratch:/scratch" in mounts


def test_a_chain_is_followed_to_its_end():
    jobs = {
        18: job("PENDING", 18, dependency="afterany:17(unfulfilled)"),
        19: job("PENDING", 19, dependency="afterok:5,afterany:18(unfulfilled)"),
        20: job("PENDING", 20, dependency="afterany:177(unfulfilled)"),
        21: job("PENDING", 21, dependency="singleton(unfulfilled)"),
        22: job("PENDING", 22, dependency="afternotok:3:19_*(unfulfilled)"),
    }
    assert dependents(jobs, [17]) == [18, 19, 22]


def test_cancel_of_a_waiting_chain(root, slurm, capsys):
    path = write_run(root)
    (path / "run.json").write_text(json.dumps({"jobs": [17, 18]}))
    slurm(line(17, "PENDING"), line(18, "PENDING", after="afterany:17(unfulfilled)"))
    assert main(["cancel", "17"]) == 0
    assert (root / "orders").read_text() == "17 18\n"
    assert "cancelled jobs 17, 18, waiting" in capsys.readouterr().out


def test_cancel_asks_for_a_checkpoint_and_then_uses_force(root, slurm, capsys):
    path = write_run(root)
    write_attempt(path, 17, 0)
    slurm(line(17))
    alive = "JobId=17 JobName=x JobState=RUNNING ExitCode=0:0"
    (root / "bin" / "scontrol").write_text(f"#!/bin/bash\necho {alive}\n")
    assert main(["cancel", "17", "--grace", "0.1"]) == 0
    assert (path / "PREEMPT").exists()
    assert (path / "CANCEL").exists()
    assert (root / "orders").read_text() == "17\n"
    out = capsys.readouterr().out
    assert "it did not save within 0:00" in out
    assert "last checkpoint: none" in out


def test_save_waits_for_the_checkpoint(root, capsys):
    run = write_run(root)
    write_attempt(run, 17, 0)
    trainer = (
        f"until rm {run}/SAVE; do sleep 0.05; done; echo {run}/s_9 > {run}/PROGRESS"
    )
    with subprocess.Popen(["sh", "-c", trainer], stderr=subprocess.DEVNULL):
        assert main(["save", "x/17", "--root", str(root)]) == 0
    assert capsys.readouterr().out.startswith("asked x/17 to save after its present")
    assert main(["save", "x/17", "--wait", "0.1", "--root", str(root)]) == 2
    assert f"{run}/SAVE was not obeyed within 0:00" in capsys.readouterr().err
    write_attempt(run, 17, 1, code=1)
    assert main(["save", "x/17", "--root", str(root)]) == 2
    text = capsys.readouterr().err
    assert "x/17 does not train now, its last attempt: failed with exit code 1" in text


def test_stop_ends_a_run_for_good(root, slurm, capsys):
    run = write_run(root)
    attempt = write_attempt(run, 17, 0)
    assert main(["stop", "x/17", "--root", str(root)]) == 0
    assert "asked x/17 to save and end" in capsys.readouterr().out
    (run / "STOP").rename(run / "STOPPED")
    (attempt / "exit_code").write_text("0")
    state = RunState(RunFolder(run), {})
    assert (state.state, "file STOP" in state.why) == ("stopped", True)
    assert main(["stop", "x/17", "--root", str(root)]) == 0
    assert "does not train now; if it starts again, it" in capsys.readouterr().out


def test_cancel_of_what_has_ended(root, slurm, capsys):
    write_attempt(write_run(root), 17, 0, code=0)
    slurm(line(17, "COMPLETED"))
    assert main(["cancel", "17"]) == 2
    assert "x/17 is done: none of its jobs is alive" in capsys.readouterr().err
    assert not (root / "orders").exists()


def test_a_step_that_did_not_start_is_told_by_the_log(root):
    path = write_run(root)
    (path / "attempts" / "17.0").mkdir(parents=True)
    (path / "EXIT_CODE").write_text("1 17\n")
    (path / "job.log").write_text(
        "d job 17: attempt 0: x on n0\n/usr/bin/python3: No module named nemo_rl\n"
    )
    (attempt,) = RunFolder(path).attempts
    assert attempt.outcome == (
        "srun ended with exit code 1: a library is missing or does not fit"
    )
    assert "NEMO_RL_PYTHON" in attempt.failure.cure
    (path / "EXIT_CODE").write_text("0 17\n")
    assert RunFolder(path).attempts[0].failure is None


def test_status_shows_why_the_last_attempt_failed(root):
    path = write_run(root)
    folder = write_attempt(path, 17, 0, code=75)
    message = "CUDA out of memory. Tried to allocate"
    died = Failure(
        node="n1", process="worker", rank=3, message=message, logs="/logs/of/n1"
    )
    record(folder, died.explained())
    state = RunState(RunFolder(path), {})
    screen = Console(file=io.StringIO(), width=80)
    screen.print(draw_run(state))
    text = screen.file.getvalue()
    for part in ("worker of rank 3", "memory does not suffice", "/logs/of/n1"):
        assert part in text
    (attempt,) = state.as_json()["attempts"]
    assert (attempt["failure"]["rank"], attempt["failure"]["again"]) == (3, False)


# ---- report


def test_report_tells_configuration_curve_failures_and_cost(root, capsys):
    path = write_run(root)
    write_attempt(path, 17, 0, code=75)
    write_attempt(path, 17, 1, code=1, failure="node n1: Ray ended:\n| ```oom```")
    page = root / "out" / "page.md"
    assert main(["report", "17", "--no-slurm", "--output", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("# x/17\n\n**failed**: node n1: Ray ended\n")
    assert "| grpo.max_num_steps | 10 | 1000 |" in text
    assert "| policy.model_name | tiny | - |" in text
    assert "log_dir" not in text
    assert "Reward from 0.1000 to 0.4000" in text
    assert "| node-hours | 4.00 |" in text
    assert "| GPU-hours | 32.00 |" in text
    assert "````text\n---- first failure ---" in text
    assert "| ```oom```" in text
    assert "words of 17.1\n" in text
    assert "words of 17.0\n" not in text
    assert main(["report", "17", "--no-slurm"]) == 0
    assert "Attempt 17.1" in capsys.readouterr().out


def test_report_of_a_run_that_never_began(root):
    path = root / "results" / "x" / "17"
    path.mkdir(parents=True)
    (path / "run.json").write_text("{}")
    text = render(RunState(RunFolder(path), {}))
    assert "None began." in text
    assert "The run wrote no resolved.yaml" in text


def test_differences_leave_secrets_out():
    config = {
        "algorithm": "grpo",
        "grpo": {"max_num_steps": 1000},
        "policy": {"model_name": "m"},
        "env": {"judge": {"api_key": "s3"}},
    }
    found = {key: value for key, value, _ in differences(config)}
    assert found == {"policy.model_name": "m", "env.judge.api_key": "***"}


# ---- chains and arrays of the launcher


def test_a_link_with_nothing_to_do_is_not_a_failure(root):
    path = write_run(root)
    write_attempt(path, 17, 0, code=0)
    (path / "attempts" / "18.0").mkdir()
    (path / "EXIT_CODE").write_text("0 18\n")
    run = RunFolder(path)
    assert [attempt.exit_code for attempt in run.attempts] == [0, 0]
    assert RunState(run, {18: job("COMPLETED", 18)}).state == "done"


def test_cancelling_one_task_spares_the_array(root, slurm, capsys):
    path = write_run(root, "x/17_1")
    (path / "launch.json").write_text(json.dumps({"job_ids": ["17_1"]}))
    assert find_run("17_1", root).path == path
    slurm(line(17, "PENDING", nodes=""))
    assert main(["cancel", "17_1"]) == 0
    assert (root / "orders").read_text() == "17_1\n"
