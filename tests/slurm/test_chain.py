"""A chain of real training jobs ends where one job ends: warned, and out of time."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(500)

RECIPE = "grpo_smollm2_cpu"
LINKS = 4
"""Three are needed, of three, three and two steps; the last has nothing to do."""


def weights(folder: Path) -> dict[str, str]:
    """Files of the newest checkpoint with their digests; two name folder and reward."""
    newest = Path((folder / "PROGRESS").read_text().strip())
    files = json.loads((newest / "manifest.json").read_text())["files"]
    named = ("trainer_state.json", ".metadata")
    found = {name: e["sha256"] for name, e in files.items() if not name.endswith(named)}
    assert len(found) > 5 and all(found.values())
    return found


@pytest.fixture
def submit(cluster, checkout, job_env, training):
    """Submit by the launcher; returns what it says as JSON."""
    launch = [sys.executable, "-m", "nemo_rl.launch", "launch", RECIPE, *training]

    def run(*more, **variables):
        command = [*launch, "env.num_workers=0", "--json", *more]
        done = cluster.run(*command, cwd=checkout, env=job_env | variables)
        return json.loads(done.stdout)[0]

    return run


def wait_for_all(cluster, run, timeout):
    """Wait for all links; return what SLURM says of them."""
    ended = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL"}
    return [cluster.wait(int(number), ended, timeout) for number in run["job_ids"]]


def log_of(run):
    return Path(run["run_dir"], "job.log").read_text()


def steps_of(run):
    lines = Path(run["run_dir"], "logs", "metrics.jsonl").read_text().splitlines()
    return sorted({json.loads(line)["step"] for line in lines})


@pytest.mark.slow
def test_a_chain_has_the_weights_of_one_long_job(cluster, submit):
    began = time.monotonic()
    steps = "grpo.max_num_steps=8"
    alone = submit("env.reward_fn=slow_reward:plain", steps)
    stopping = "env.reward_fn=slow_reward:stopping"
    chain = submit(stopping, steps, "--chain", str(LINKS - 1))
    for run in (alone, chain):
        last = wait_for_all(cluster, run, 200)[-1]
        assert last["JobState"] == "COMPLETED", log_of(run)
    assert log_of(chain).count("resumed from") == 2
    assert f"link {LINKS - 1} of the chain has nothing to do" in log_of(chain)
    assert steps_of(chain) == list(range(1, 9))
    assert weights(Path(chain["run_dir"])) == weights(Path(alone["run_dir"]))
    print(f"one job and a chain of it: {time.monotonic() - began:.0f} s")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_chain_under_a_hard_limit_has_the_weights_of_one_long_job(cluster, submit):
    """Four minutes a link, no warning by a signal, KILL at the end: all end before it.

    Long enough for a machine on which a start takes two minutes; with steps of 15 s
    the training needs three links at least.
    """
    began = time.monotonic()
    steps, reward = 30, "env.reward_fn=slow_reward:very"
    total = f"grpo.max_num_steps={steps}"
    alone = submit("env.reward_fn=slow_reward:plain", total)
    chain = submit(
        reward,
        total,
        "checkpointing.end_margin_s=20",
        *("--chain", "7", "--time", "00:04:00"),
        SBATCH_SIGNAL="B:CONT@1",
    )
    assert wait_for_all(cluster, alone, 200)[-1]["JobState"] == "COMPLETED"
    links = wait_for_all(cluster, chain, 1000)
    log = log_of(chain)
    assert "TIMEOUT" not in {job["JobState"] for job in links}, log
    assert links[-1]["JobState"] == "COMPLETED", log
    stopped = log.count("another step does not fit: the allocation ends at")
    assert stopped >= 2 and log.count("resumed from") == stopped, log
    assert "USR2" not in log
    assert steps_of(chain) == list(range(1, steps + 1))
    assert weights(Path(chain["run_dir"])) == weights(Path(alone["run_dir"]))
    print(f"{stopped + 1} links: {time.monotonic() - began:.0f} s")
