"""What slurmctld says to our scripts, on a cluster of 4,096 nodes that never boot."""

from __future__ import annotations

import sys
import time

from nemo_rl.launch.hostlist import compress, expand

LLAMA = "recipes/grpo_llama8b.sh"


def test_recipe_is_accepted(cloud, checkout):
    done = cloud.run("sbatch", "--test-only", LLAMA, cwd=checkout)
    assert "to start at" in done.stderr
    assert "gpu[0001-0002]" in done.stderr


def test_more_nodes_than_there_are_is_refused(cloud, checkout):
    done = cloud.run(
        "sbatch", "--test-only", "--nodes=4097", LLAMA, cwd=checkout, check=False
    )
    assert done.returncode
    assert "node configuration is not available" in done.stderr


def test_launcher_asks_the_same_question(cloud, checkout):
    launch = [sys.executable, "-m", "nemo_rl.launch", "grpo_llama8b", "--test-only"]
    batch = ["grpo.num_prompts_per_step=4096", "--nodes", "512"]
    done = cloud.run(*launch, *batch, cwd=checkout)
    assert "on nodes gpu[0001-0512]" in done.stdout
    done = cloud.run(*launch, *batch, "--nodes", "8192", cwd=checkout, check=False)
    assert done.returncode == 2
    assert "SLURM refused the job" in done.stderr
    assert "Traceback" not in done.stderr


def test_launcher_submits_through_submitit(cloud, checkout):
    launch = [sys.executable, "-m", "nemo_rl.launch", "grpo_llama8b"]
    done = cloud.run(*launch, "--time", "02:00:00", cwd=checkout)
    assert done.stdout.startswith("submitted job ")
    number = int(done.stdout.split()[2].rstrip(":"))
    job = cloud.job(number)
    assert job["JobName"] == "grpo_llama8b"
    assert (job["NumNodes"].partition("-")[0], job["TimeLimit"]) == ("2", "02:00:00")
    assert job["WorkDir"] == str(checkout)
    assert job["Requeue"] == "1"
    text = cloud.run("scontrol", "write", "batch_script", str(number), "-").stdout
    assert "OVERRIDES=('cluster.time=\"02:00:00\"')" in text
    cloud.run("scancel", str(number))


def test_hostlists_as_scontrol_reads_them(cloud):
    names = [f"gpu{i:04d}" for i in range(1, 4097)]
    began = time.monotonic()
    text = compress(names)
    assert expand(text) == names
    assert time.monotonic() - began < 1
    for mixed in (text, "gpu[0001,0007-0009],login1", "a[1-2]b[01-02]"):
        there = cloud.run("scontrol", "show", "hostnames", mixed).stdout.split()
        assert expand(mixed) == there
