"""A job of two nodes in which one worker stands still."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.slurm.test_training import RECIPE, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
LIMIT_S = 12


def test_the_worker_that_stands_still_is_named_and_the_job_begins_anew(
    cluster, checkout, job_env, training
):
    steps = ["grpo.max_num_steps=12", "checkpointing.save_period=1"]
    limit = f"cluster.hang_timeout_s={LIMIT_S}"
    slow = "env.reward_fn=slow_reward:length"
    arguments = ["--nodes=2", RECIPE, *training, slow, *steps, limit]
    run = Run(cluster, checkout, job_env, arguments)
    run.until(lambda: len(run.steps()) >= 2, 150)
    find = "for p in $(pgrep -f ray::WorkerShell); do cat /proc/$p/environ | tr '\\0' "
    find += "'\\n' | grep -q nemo_rl-$0-1 && echo $p; done; true"
    [victim] = cluster.run("bash", "-c", find, str(run.number)).stdout.split()
    cluster.run("kill", "-STOP", victim)
    stopped = time.monotonic()
    run.until(lambda: "asking the driver to save" in run.log(), 90)
    told = time.monotonic() - stopped
    run.until(lambda: "requeued: the next attempt goes on from" in run.log(), 90)
    requeued = time.monotonic() - stopped
    print(f"told of after {told:.0f} s (limit {LIMIT_S} s), requeued {requeued:.0f} s")
    pattern = r"It waits for PolicyWorker rank 1 on \S+ \(process \d+\), which stopped"
    assert re.search(pattern, run.log())
    attempt = run.folder / "attempts" / f"{run.number}.0"
    texts = [path.read_text() for path in sorted((attempt / "stacks").glob("*.txt"))]
    assert len(texts) == 2
    assert "==== driver, process" in "".join(texts)
    assert "(it did not answer)" in "".join(texts)
    found = json.loads((attempt / "failure.json").read_text())
    assert (found["process"], found["rank"]) == ("worker", 1)
    assert "nothing got done any more" in found["cause"]
    run.finish(150)
    assert run.steps() == list(range(1, 13))
