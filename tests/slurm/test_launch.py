"""The launcher on a real SLURM: submit, wait, result, cancel, chain, array, follow.

The jobs' agent is a small program (`stub_agent.sh`), so that a job takes a second;
whole jobs are in test_training. Each test prints how long what it did took.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from contextlib import contextmanager

import pytest

from nemo_rl.launch.hostlist import expand
from tests.slurm.leaking import SECRETS, leaks

RECIPE = "grpo_smollm2_cpu"
LLAMA = "grpo_llama8b"
LAUNCH = [sys.executable, "-m", "nemo_rl.launch", "launch", RECIPE]


@pytest.fixture
def stub(checkout, job_env):
    """Environment of a launcher whose jobs run the stub."""
    agent = str(checkout / "stub_agent.sh")
    return job_env | {"NEMO_RL_PYTHON": agent}


@pytest.fixture(scope="module", autouse=True)
def agent(checkout):
    path = checkout / "stub_agent.sh"
    path.symlink_to(__file__.replace("test_launch.py", "stub_agent.sh"))


@contextmanager
def at_most(seconds, what):
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    print(f"{what}: {took:.1f} s (at most {seconds})")
    assert took < seconds


def python(cluster, checkout, env, program):
    """Run a program beside the cluster; return what it printed as JSON."""
    done = cluster.run(sys.executable, "-c", program, cwd=checkout, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_api_gives_submitits_job_with_the_runs_result(cluster, checkout, stub):
    program = f"""
import json, nemo_rl.launch
job = nemo_rl.launch.submit("{RECIPE}", nodes=1, overrides=["grpo.seed=3"])
early = job.state
job.wait()
found = job.result()
print(json.dumps([early, job.done(), job.state, found, job.stdout(), job.exit_code()]))
"""
    with at_most(30, "submit, wait, result"):
        early, done, state, found, log, code = python(cluster, checkout, stub, program)
    assert early in ("PENDING", "RUNNING", "CONFIGURING")
    assert (done, code) == (True, 0)
    assert state in ("COMPLETED", "COMPLETING", "RUNNING")
    folder = checkout / "results" / RECIPE / found["job_id"]
    assert found["run_dir"] == str(folder)
    assert (found["exit_code"], found["step"]) == (0, 5)
    assert found["metrics"] == {"train/loss": 0.5}
    assert found["checkpoint"] == f"{folder}/checkpoints/step_5"
    assert "trained step 5" in log and "grpo.seed=3" in log
    manifest = json.loads((folder / "launch.json").read_text())
    assert manifest["recipe"]["overrides"] == ["grpo.seed=3", "cluster.num_nodes=1"]


def test_secrets_reach_the_job_and_no_file(cluster, checkout, stub):
    spy = checkout / "spy_agent.sh"
    spy.write_text(
        '#!/bin/bash\necho "agent has ${#HF_TOKEN} letters"\n'
        f'exec {stub["NEMO_RL_PYTHON"]} "$@"\n'
    )
    spy.chmod(0o755)
    env = stub | SECRETS | {"NEMO_RL_PYTHON": str(spy)}
    with at_most(40, "submitted with secrets"):
        done = cluster.run(*LAUNCH, "--wait", cwd=checkout, env=env)
        (number,) = re.findall(r"submitted job (\d+)", done.stdout)
        results = checkout / "results" / RECIPE
        log = (results / number / "job.log").read_text()
        assert f"agent has {len(SECRETS['HF_TOKEN'])} letters" in log
        # By hand, where the launcher cannot refuse it, an override may hold one.
        key = "data.dataset_kwargs.token=keyByHandOfTheTests"
        script = f"recipes/{RECIPE}.sh"
        by_hand = cluster.submit(script, key, cwd=checkout, env=env)
        cluster.wait(by_hand, {"COMPLETED"}, 30)
        assert (
            "dataset_kwargs.token=***"
            in (
                (results / str(by_hand) / "job.log")
                .read_text()
                .partition("agent of")[0]
            )
        )
        (results / str(by_hand) / "job.log").unlink()  # The stub prints its words.
    places = [results, *checkout.glob("slurm-*.log")]
    assert leaks(*places, also="keyByHandOfTheTests") == []
    done = cluster.run(*LAUNCH, key, cwd=checkout, env=env, check=False)
    assert done.returncode == 2
    assert "data.dataset_kwargs.token: a secret in an override" in done.stderr
    assert "keyByHandOfTheTests" not in done.stdout + done.stderr


def test_a_failure_raises_with_the_end_of_the_log(cluster, checkout, stub):
    program = f"""
import json, nemo_rl.launch
from submitit.core.utils import FailedJobError
job = nemo_rl.launch.submit("{RECIPE}")
try:
    job.result()
except FailedJobError as error:
    print(json.dumps([str(error), job.summary()["exit_code"]]))
"""
    with at_most(30, "a failed job's result"):
        text, code = python(cluster, checkout, stub | {"STUB_CODE": "2"}, program)
    assert code == 2
    assert "exit code 2" in text and "refused (exit code 2)" in text


def test_cancel(cluster, checkout, stub):
    program = f"""
import json, nemo_rl.launch
job = nemo_rl.launch.submit("{RECIPE}", chain=1)
job.cancel()
job.wait()
print(json.dumps([job.all_ids, job.done(), job.state]))
"""
    with at_most(30, "cancel a chain"):
        ids, done, state = python(cluster, checkout, stub, program)
    assert len(ids) == 2 and done and state == "CANCELLED"
    for number in ids:
        cluster.wait(int(number), {"CANCELLED"}, 20)


def test_a_chain_resumes_and_its_last_link_does_nothing(cluster, checkout, stub):
    env = stub | {"STUB_STEPS": "8"}  # Two jobs of five steps; the third is spare.
    with at_most(60, "a chain of 3"):
        done = cluster.run(
            *LAUNCH, "--chain", "2", "--follow", cwd=checkout, env=env, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        ids = expand_ids(done.stdout)
        last = cluster.wait(ids[2], {"COMPLETED", "FAILED"}, 30)
    assert last["JobState"] == "COMPLETED"
    folder = checkout / "results" / RECIPE / str(ids[0])
    steps = [json.loads(x)["step"] for x in (folder / "logs/metrics.jsonl").open()]
    assert steps == list(range(1, 9))
    log = (folder / "job.log").read_text()
    assert f"link 1 of the chain goes on from {folder}/checkpoints/step_5" in log
    done_by = f"the run is complete (job {ids[1]})"
    assert f"link 2 of the chain has nothing to do: {done_by}" in log
    assert f"agent of {ids[2]}" not in log
    assert cluster.job(ids[0])["Requeue"] == "0"
    assert "trained step 8" in done.stdout


def expand_ids(text):
    """The job numbers that the launcher printed for a chain."""
    first = text.partition("submitted job ")[2].partition(":")[0]
    rest = text.partition("the one before it: ")[2].partition("\n")[0]
    return [int(first), *map(int, rest.split(", "))]


@pytest.mark.parametrize(
    ("code", "expected", "why", "ran"),
    [(2, 2, "was refused", 1), (1, 1, "the two links before it saved nothing new", 2)],
)
def test_a_chain_ends_early(cluster, checkout, stub, code, expected, why, ran):
    env = stub | {"STUB_CODE": str(code)}
    with at_most(60, f"a chain of 4 that fails with {code}"):
        done = cluster.run(
            *LAUNCH, "--chain", "3", "--wait", cwd=checkout, env=env, check=False
        )
        assert done.returncode == expected, done.stdout + done.stderr
        ids = expand_ids(done.stdout)
        cluster.wait(ids[3], {"FAILED"}, 30)
    log = (checkout / "results" / RECIPE / str(ids[0]) / "job.log").read_text()
    assert why in log
    assert log.count("agent of") == ran


def test_the_links_of_a_chain_are_spared_a_bad_node(cluster, checkout, stub):
    env = stub | {"STUB_BAD": "node0"}
    busy = cluster.submit("--exclusive", "--nodes=4", "--wrap=sleep 60", cwd=checkout)
    with at_most(90, "a chain of 3 around a bad node"):
        chain = [*LAUNCH, "--chain", "2", "--json"]
        said = json.loads(cluster.run(*chain, cwd=checkout, env=env).stdout)[0]
        first, *others = map(int, said["job_ids"])
        cluster.run("scontrol", "update", f"jobid={first}", "reqnodelist=node0")
        cluster.run("scancel", str(busy))
        jobs = [cluster.wait(n, {"COMPLETED", "FAILED"}, 60) for n in (first, *others)]
    assert [job["ExitCode"] for job in jobs] == ["75:0", "0:0", "0:0"]
    assert [job["ExcNodeList"] for job in jobs] == ["(null)", "node0", "node0"]
    folder = checkout / "results" / RECIPE / str(first)
    log = (folder / "job.log").read_text()
    links = ",".join(map(str, others))
    assert f"asking SLURM to leave node0 out of the next links, {links}" in log
    # A link that did not train does not count.
    assert (folder / "CHAIN").read_text() == f"{others[0]} the start\n"


def test_an_array_of_three(cluster, checkout, stub):
    with at_most(60, "an array of 3"):
        sweep = ["--sweep", "grpo.seed=1,2,3", "--wait"]
        done = cluster.run(*LAUNCH, *sweep, cwd=checkout, env=stub)
    lines = done.stdout.partition(" grpo.seed\n")[2].splitlines()[:3]
    rows = [line.split() for line in lines]
    assert [row[1] for row in rows] == ["1", "2", "3"]
    for name, seed in rows:
        folder = checkout / "results" / RECIPE / name
        log = (folder / "job.log").read_text()
        assert f"grpo.seed={seed}" in log and "trained step 5" in log
        assert (folder / "EXIT_CODE").read_text() == f"0 {name}\n"


def test_follow_survives_a_requeue(cluster, checkout, stub):
    env = stub | {"STUB_STEPS": "8"}
    with at_most(90, "follow over a requeue"):
        done = cluster.run(*LAUNCH, "--follow", cwd=checkout, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "requeued: the next attempt goes on from" in done.stdout
    trained = [line for line in done.stdout.splitlines() if "trained step" in line]
    assert trained == [f"trained step {k}" for k in range(1, 9)]


# ---- no job runs


def test_rendering_and_test_only_at_4096_nodes(cloud, checkout):
    batch = ["grpo.num_prompts_per_step=4096", "--nodes", "4096"]
    launch = [sys.executable, "-m", "nemo_rl.launch", "grpo_llama8b", *batch]
    program = f"""
import time
from nemo_rl.launch.request import prepare
from nemo_rl.launch.script import render
from nemo_rl.launch.submission import ask_slurm
began = time.monotonic()
made = prepare("grpo_llama8b", overrides=["{batch[0]}"], nodes=4096)
assert "--nodes=4096" in render(made.first)
rendered = time.monotonic() - began
answer = ask_slurm(made.first, root=made.root, site=made.site)
assert "gpu[0001-4096]" in answer, answer
print("[%.3f, %.3f]" % (rendered, time.monotonic() - began))
"""
    rendered, asked = python(cloud, checkout, {}, program)
    print(f"4,096 nodes: rendered in {rendered} s, --test-only after {asked} s")
    assert asked < 2
    done = cloud.run(*launch, "--dry-run", "--json", cwd=checkout)
    assert json.loads(done.stdout)["manifest"]["gpu_hours"] == 4096 * 8 * 4


def questions(cloud):
    """RPCs that slurmctld has answered, by type; of sdiag itself none."""
    text = cloud.run("sdiag").stdout
    part = text.partition("statistics by message type")[2]
    part = part.partition("statistics by user")[0]
    found = dict(re.findall(r"(REQUEST_\w+)\s*\(.*?\)\s*count:(\d+)", part))
    return {k: int(v) for k, v in found.items() if k != "REQUEST_STATS_INFO"}


def test_slurm_is_asked_as_often_for_4096_nodes_as_for_two(cloud, checkout):
    asked = {}
    for nodes in (2, 4096):
        before = questions(cloud)
        program = f"""
import nemo_rl.launch
job = nemo_rl.launch.submit("{LLAMA}", nodes={nodes},
    overrides=["grpo.num_prompts_per_step=4096", "cluster.job_name=n{nodes}"])
job.watcher.update()
print("[" + job.job_id + "]")
"""
        (number,) = python(cloud, checkout, {}, program)
        after = questions(cloud)
        asked[nodes] = {k: n - before.get(k, 0) for k, n in after.items()}
        asked[nodes] = {k: n for k, n in asked[nodes].items() if n and "NODE" not in k}
        cloud.run("scancel", str(number))
    print(f"questions: {asked}")
    ours = ("REQUEST_SUBMIT_BATCH_JOB", "REQUEST_JOB_INFO", "REQUEST_JOB_INFO_SINGLE")
    small, large = ({k: asked[n].get(k, 0) for k in ours} for n in asked)
    assert small == large
    assert small["REQUEST_SUBMIT_BATCH_JOB"] == 1


def random_list(random):
    """A node list as SLURM writes them: it has no text after the last brackets."""
    groups = []
    for _ in range(random.randint(1, 4)):
        text = random.choice(["n", "gpu", "rack-a", "x1c", "dgx-h100-"])
        for dimension in range(random.choice([0, 1, 1, 1, 2])):
            text += random.choice(["", "n", "-ib"]) if dimension else ""
            width = random.randint(1, 5)
            spans = []
            for _ in range(random.randint(1, 4)):
                low = random.randrange(0, 10**width - 1)
                high = min(low + random.randint(0, 9), 10**width - 1)
                first = f"{low:0{width}d}"
                spans.append(first if low == high else f"{first}-{high:0{width}d}")
            text += f"[{','.join(spans)}]"
        plain = text[-1] != "]" and random.random() < 0.5
        groups.append(f"{text}{random.randint(0, 999)}" if plain else text)
    return ",".join(groups)


def test_ten_thousand_hostlists_as_scontrol_reads_them(cloud):
    source = random.Random(6)
    lists = [random_list(source) for _ in range(10_000)]
    with at_most(60, "10,000 lists"):
        for start in range(0, len(lists), 200):
            batch = lists[start : start + 200]
            text = ",".join(batch)
            there = cloud.run("scontrol", "show", "hostnames", text).stdout.split()
            mine = [name for each in batch for name in expand(each)]
            assert mine == there
