"""A chain of real training jobs: warned in the middle, it ends where one job ends."""

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


@pytest.mark.slow
def test_a_chain_has_the_weights_of_one_long_job(cluster, checkout, job_env, training):
    began = time.monotonic()
    launch = [sys.executable, "-m", "nemo_rl.launch", "launch", RECIPE, *training]
    launch += ["grpo.max_num_steps=8", "env.num_workers=0", "--json"]

    def submit(*more):
        done = cluster.run(*launch, *more, cwd=checkout, env=job_env)
        return json.loads(done.stdout)[0]

    alone = submit("env.reward_fn=slow_reward:plain")
    stopping = "env.reward_fn=slow_reward:stopping"
    chain = submit(stopping, "--chain", str(LINKS - 1))
    log = Path(chain["run_dir"], "job.log")
    for run in (alone, chain):
        for number in run["job_ids"]:
            job = cluster.wait(int(number), {"COMPLETED", "FAILED", "TIMEOUT"}, 200)
        assert job["JobState"] == "COMPLETED", log.read_text()
    assert log.read_text().count("resumed from") == 2
    assert f"link {LINKS - 1} of the chain has nothing to do" in log.read_text()
    steps = Path(chain["run_dir"], "logs", "metrics.jsonl").read_text().splitlines()
    assert sorted({json.loads(line)["step"] for line in steps}) == list(range(1, 9))
    assert weights(Path(chain["run_dir"])) == weights(Path(alone["run_dir"]))
    print(f"one job and a chain of it: {time.monotonic() - began:.0f} s")
