"""Whole jobs: the recipe's own script, real SLURM, Ray and training on several nodes.

Not covered, for lack of the hardware: GPUs, containers, shared network file systems.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from nemo_rl.launch import timeline
from nemo_rl.launch.hostlist import expand
from tests.slurm.leaking import SECRETS, leaks

pytestmark = pytest.mark.timeout(500)

RECIPE = "recipes/grpo_smollm2_cpu.sh"
FINISHED = {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"}
SLOW = "env.reward_fn=slow_reward:length"


class Run:
    """A submitted job and its folder."""

    def __init__(self, cluster, checkout, env, arguments):
        self.cluster = cluster
        self.number = cluster.submit(*arguments, cwd=checkout, env=env)
        self.folder = checkout / "results" / "grpo_smollm2_cpu" / str(self.number)

    def log(self):
        path = self.folder / "job.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def steps(self):
        path = self.folder / "logs" / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        steps = [json.loads(line)["step"] for line in lines]
        return sorted(set(steps))

    def until(self, ready, timeout):
        deadline = time.monotonic() + timeout
        while not ready():
            state = self.cluster.job(self.number)["JobState"]
            assert state not in FINISHED or ready(), f"{state}\n{self.log()}"
            assert time.monotonic() < deadline, f"{state}\n{self.log()}"
            time.sleep(0.5)

    def finish(self, timeout):
        try:
            job = self.cluster.wait(self.number, FINISHED, timeout)
        except TimeoutError as error:
            pytest.fail(f"{error}\n{self.log()}")
        assert job["JobState"] == "COMPLETED", f"{self.log()}\n{self.evidence(job)}"
        return job

    def evidence(self, job):
        """What SLURM says of a job that did not complete."""
        facts = {
            key: job.get(key) for key in ("JobState", "Reason", "ExitCode", "Restarts")
        }
        printed = Path(job["StdOut"]).read_text(errors="replace")
        log = (self.cluster.root / "log" / "slurmctld.log").read_text(errors="replace")
        number = f"JobId={self.number}"
        lines = [line for line in log.splitlines() if number in line or "node" in line]
        return "\n".join([str(facts), printed[-2000:], *lines[-40:]])


def test_three_nodes_share_every_layer(cluster, checkout, job_env, training):
    """`sbatch --nodes=3` with TP=3: every matrix is spread over three hosts."""
    sizes = [
        "policy.megatron_cfg.tensor_model_parallel_size=3",
        "grpo.max_num_steps=2",
    ]
    arguments = ["--nodes=3", RECIPE, *training, *sizes]
    run = Run(cluster, checkout, job_env | SECRETS, arguments)
    nodes = run.finish(300)["NodeList"]
    log = run.log()
    assert "3 nodes, 2 CPUs and 0 GPUs each, up in" in log
    assert "the driver ended with exit code 0" in log
    assert run.steps() == [1, 2]
    assert "num_nodes: 3" in (run.folder / "resolved.yaml").read_text()
    attempt = run.folder / "attempts" / f"{run.number}.0"
    assert (attempt / "exit_code").read_text() == "0"
    assert sorted(p.name for p in attempt.glob("ray-node*.log")) == [
        f"ray-{node}.log" for node in expand(nodes)
    ]
    assert not (attempt / "ray_token").exists()
    moments = {one.name: one.at for one in timeline.read(attempt)}
    assert set(moments) == set(timeline.MOMENTS)
    assert moments["stepped"] > moments["joined"] > moments["checked"]
    bound = 20
    took = moments["closed"] - moments["ended"]
    print(f"from the driver's end to srun's: took {took:.1f} s, bound {bound} s")
    assert took < bound
    assert (run.folder / "PROGRESS").read_text().strip().endswith("step_000002")
    assert (
        f"attempt 0 on {nodes}"
        in (checkout / f"slurm-grpo_smollm2_cpu-{run.number}.log").read_text()
    )
    assert leaks(run.folder, *checkout.glob("slurm-*.log")) == []


def test_a_users_mistake_ends_the_job_with_2(cluster, checkout, job_env, training):
    arguments = ["--nodes=1", RECIPE, *training, "grpo.max_num_stepps=2"]
    run = Run(cluster, checkout, job_env, arguments)
    job = cluster.wait(run.number, FINISHED, 90)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0")
    assert "grpo.max_num_stepps is not a field. Did you mean" in run.log()
    assert "Traceback" not in run.log()
    facts = json.loads((run.folder / "run.json").read_text())
    assert (facts["jobs"], facts["recipe"]) == (
        [run.number],
        "recipes/grpo_smollm2_cpu.yaml",
    )


@pytest.mark.slow
def test_a_lost_node_is_named_and_the_job_goes_on_without_it(
    cluster, checkout, job_env, training
):
    steps = ["grpo.max_num_steps=30", "checkpointing.save_period=1"]
    arguments = ["--nodes=2", RECIPE, *training, SLOW, *steps]
    run = Run(cluster, checkout, job_env, arguments)
    run.until(lambda: len(run.steps()) >= 2, 120)
    victim = expand(cluster.job(run.number)["NodeList"])[1]
    cluster.tell(f"kill {victim}")
    killed = time.monotonic()
    run.until(lambda: f"node {victim} is lost" in run.log(), 60)
    assert time.monotonic() - killed < 60
    run.until(lambda: "requeued: the next attempt goes on from" in run.log(), 60)
    cluster.run("scontrol", "update", f"nodename={victim}", "state=down", "reason=dead")
    job = run.finish(150)
    assert victim not in expand(job["NodeList"])
    assert f"attempt 0 failed: node {victim} is lost" in run.log()
    assert "resumed from" in run.log()
    assert run.steps() == list(range(1, 31))
