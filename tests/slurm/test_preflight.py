"""The checks before training, on the nodes of a real SLURM.

The driver is a stand-in that ends at once; all around it, Ray included, is real.
Not covered, for lack of the hardware: GPUs, NCCL, network file systems.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from nemo_rl.launch.hostlist import expand
from nemo_rl.launch.ray_start import BLOCK, PORT_BAND

pytestmark = pytest.mark.timeout(300)

RECIPE = "recipes/grpo_smollm2_cpu.sh"
FINISHED = {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"}
LISTEN = """
import socket, sys, time
server = socket.socket()
server.bind(("", int(sys.argv[1])))
server.listen()
time.sleep(100)
"""
DRIVER = """
import sys
from nemo_rl.launch.real_driver import *
if __name__ == "__main__":
    print("the stand-in ran with", *sys.argv[1:])
"""


@pytest.fixture(scope="module")
def stand_in(with_driver) -> Path:
    """A checkout whose driver ends at once."""
    return with_driver("stand-in", DRIVER)


@pytest.fixture
def variables(job_env, training):
    return job_env | {"NEMO_RL_PREFLIGHT_SKIP": ""}


@pytest.fixture
def full_node(cluster, request):
    """A node whose /dev/shm others have filled."""
    name = getattr(request, "param", "node1")
    step = ["srun", f"--nodelist={name}", "--nodes=1"]
    cluster.run(*step, "fallocate", "--length=1000M", "/dev/shm/full")
    yield name
    cluster.run(*step, "rm", "/dev/shm/full")


class Job:
    """A job that ended, and what it left."""

    def __init__(self, cluster, folder, number, limit):
        began = time.monotonic()
        self.folder = folder / "results" / "grpo_smollm2_cpu" / str(number)
        path = self.folder / "job.log"
        try:
            self.job = cluster.wait(number, FINISHED, limit)
        except TimeoutError as error:
            pytest.fail(f"{error}\n{path.read_text() if path.exists() else ''}")
        self.seconds = time.monotonic() - began
        self.log = path.read_text()
        self.printed = Path(self.job["StdOut"]).read_text()
        assert self.job["JobState"] == "COMPLETED", self.log + self.printed

    def report(self, attempt=0):
        folder = self.folder / "attempts" / f"{self.folder.name}.{attempt}"
        found = json.loads((folder / "preflight.json").read_text())
        for one in found["findings"]:
            print(one["node"], one["name"], one["verdict"], one["measured"])
        print(f"preflight {found['seconds']} s of 60; job {self.seconds:.0f} s")
        assert found["seconds"] < 60
        return found


def test_sound_nodes_pass_and_leftovers_and_taken_ports_are_no_matter(
    cluster, stand_in, variables, training, short_dir
):
    sizes = ["policy.train_micro_batch_size=2"]
    arguments = ["--hold", "--nodes=3", RECIPE, *training, *sizes]
    number = cluster.submit(*arguments, cwd=stand_in, env=variables)
    first = PORT_BAND[0] + BLOCK * (number % ((PORT_BAND[1] - PORT_BAND[0]) // BLOCK))
    listen = stand_in / "listen.py"
    listen.write_text(LISTEN)
    for index in range(4):
        words = f"{sys.executable} {listen} {first} > /dev/null 2>&1 &"
        inside = ["nsenter", f"--net=/run/netns/node{index}", "sh", "-c", words]
        cluster.run(*inside)
        old = short_dir / f"nemo_rl-99999{index}-0"
        old.mkdir()
        (old / "node").write_text(f"node{index}")
        (old / "core").write_bytes(b"0" * 1000)
    cluster.run("scontrol", "release", str(number))
    job = Job(cluster, stand_in, number, 150)
    report = job.report()
    nodes = expand(job.job["NodeList"])
    assert report["train"] == nodes and not report["failed"]
    said = {(one["node"], one["name"]): one for one in report["findings"]}
    for node in nodes:
        assert f"{first} is taken" in said[node, "ports"]["measured"]
        assert "nemo_rl-99999" in said[node, "leftovers"]["measured"]
        assert said[node, "clock"]["verdict"] == "ok"
        assert "gloo" in said[node, "fabric"]["measured"]
    assert "16 of them through the template" in said[nodes[0], "rows"]["measured"]
    left = {path.name for path in short_dir.glob("nemo_rl-9*")}
    other = {f"nemo_rl-99999{i}-0" for i in range(4) if f"node{i}" not in nodes}
    assert left == other
    assert "preflight: 3 of 3 nodes pass" in job.log
    assert "the stand-in ran with" in job.log


def test_a_node_that_fails_is_named_excluded_and_the_job_goes_on_elsewhere(
    cluster, stand_in, job_env, training, full_node
):
    arguments = ["--nodes=2", RECIPE, *training]
    number = cluster.submit(*arguments, cwd=stand_in, env=job_env)
    job = Job(cluster, stand_in, number, 150)
    report = job.report()
    assert report["failed"] == [full_node] and not report["train"]
    wrong = next(one for one in report["findings"] if one["verdict"] == "fail")
    assert (wrong["node"], wrong["name"]) == (full_node, "shm")
    assert "MiB free of 1024" in wrong["measured"] and wrong["cure"]
    assert f"preflight fail on {full_node}: shm: " in job.log
    assert f"asking SLURM to leave out {full_node}" in job.log
    assert f"attempt 0 failed: node {full_node} failed its checks: shm" in job.log
    assert job.job["Restarts"] == "1"
    assert job.job["ExcNodeList"] == full_node
    assert full_node not in expand(job.job["NodeList"])
    assert job.report(1)["train"] == expand(job.job["NodeList"])


@pytest.mark.parametrize("full_node", ["node0"], indirect=True)
def test_a_spare_node_takes_the_place_of_the_first_one(
    cluster, stand_in, variables, training, full_node
):
    skip = {"NEMO_RL_PREFLIGHT_SKIP": "rows"}
    arguments = ["--nodes=3", RECIPE, *training, "cluster.spare_nodes=1"]
    number = cluster.submit(*arguments, cwd=stand_in, env=variables | skip)
    job = Job(cluster, stand_in, number, 150)
    report = job.report()
    nodes = expand(job.job["NodeList"])
    healthy = [n for n in nodes if n != full_node]
    assert nodes[0] == full_node and report["failed"] == [full_node]
    assert report["train"] == healthy and len(healthy) == 2
    assert job.job["Restarts"] == "0"
    assert "2 nodes, 2 CPUs and 0 GPUs each, up in" in job.log
    assert "cluster.num_nodes=2 --run-dir" in job.log
    # The first of those that train runs the driver.
    assert f"[{healthy[0]}] the driver ended with exit code 0" in job.log
    attempt = job.folder / "attempts" / f"{job.folder.name}.0"
    names = json.loads((attempt / "attempt.json").read_text())["node_names"]
    assert names == [*healthy, full_node]


def test_doctor_asks_the_scheduler(cloud, checkout):
    """Of 4,096 nodes, in seconds."""
    doctor = [sys.executable, "-m", "nemo_rl.launch", "doctor", "grpo_llama8b"]
    batch = ["--only", "slurm,partition,accepted,recipe", "--json"]
    began = time.monotonic()
    done = cloud.run(*doctor, *batch, cwd=checkout)
    print(f"doctor {time.monotonic() - began:.1f} s of 60")
    assert time.monotonic() - began < 60
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert [one["verdict"] for one in found.values()] == ["ok"] * 4
    assert found["slurm"]["measured"].endswith("without accounting")
    assert found["partition"]["measured"].startswith("batch UP, 4096 nodes")
    many = ["--nodes", "8192", "grpo.num_prompts_per_step=4096"]
    done = cloud.run(*doctor, *many, *batch, cwd=checkout, check=False)
    assert done.returncode == 2
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert "8192 nodes are beyond TotalNodes=4096" in found["partition"]["measured"]
    assert "not available" in found["accepted"]["measured"]
