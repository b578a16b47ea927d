"""Two jobs on one node, and what a killed job left there.

The driver is a stand-in that joins its Ray, says what it sees, and waits for the other
job's; all around it is real. Two trainings on one node have not been tried.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from nemo_rl.launch.ray_start import BLOCK, PORT_BAND
from tests.slurm import workplace

pytestmark = pytest.mark.timeout(500)

LIMIT_S = 200
FINISHED = {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"}
BLOCKS = (PORT_BAND[1] - PORT_BAND[0]) // BLOCK
DRIVER = """
import json, os, sys, time
from pathlib import Path
from nemo_rl.launch.real_driver import *
from nemo_rl.distributed import ray_session
if __name__ == "__main__":
    place = Path(os.environ["MEETING"])
    ray_session.connect()
    import ray
    seen = {"address": os.environ["RAY_ADDRESS"], "nodes": len(ray.nodes()),
            "cpus": ray.cluster_resources()["CPU"]}
    (place / os.environ["SLURM_JOB_ID"]).write_text(json.dumps(seen))
    deadline = time.monotonic() + 150
    while len(os.listdir(place)) < int(os.environ["GUESTS"]):
        assert time.monotonic() < deadline, os.listdir(place)
        time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def stand_in(checkout: Path, short_dir: Path) -> Path:
    return workplace.with_driver(checkout, short_dir / "sharing", DRIVER)


@pytest.fixture
def meeting(tmp_path, job_env):
    """A folder for what the drivers say, and the variables of their jobs."""
    folder = tmp_path / "meeting"
    folder.mkdir()
    return folder, job_env | {"MEETING": str(folder)}


def launch(cluster, folder, variables, training, *words):
    """Submit through the launcher, to node0."""
    command = [sys.executable, "-m", "nemo_rl.launch", "grpo_smollm2_cpu", *training]
    place = {"SBATCH_REQUEUE": "1"} | variables
    done = cluster.run(*command, *words, "--json", cwd=folder, env=place)
    return int(json.loads(done.stdout)[0]["job_ids"][0])


def test_two_jobs_on_one_node_keep_out_of_each_others_way(
    cluster, stand_in, meeting, training, short_dir
):
    """Their numbers are such that both begin with the same block of ports."""
    folder, variables = meeting
    variables |= {"GUESTS": "2", "NEMO_RL_PREFLIGHT_SKIP": "rows,allreduce"}
    shared = ["cluster.exclusive=false", "cluster.cpus_per_node=1"]
    shared += ["cluster.memory_per_node=1500M"]
    began = time.monotonic()
    first = launch(cluster, stand_in, variables, training, *shared)
    while cluster.submit("--hold", "--wrap=true", cwd=stand_in) < first + BLOCKS - 1:
        pass
    # As if an attempt of the second job had been killed there, but for its Ray.
    killed = short_dir / f"nemo_rl-{first + BLOCKS}-0"
    killed.mkdir()
    (killed / "ray.json").write_text('["start", "--wrong"]')
    (killed / "ray_ready").touch()
    words = f"RAY_TMPDIR={killed} sleep 1000 > /dev/null 2>&1 & echo $!"
    orphan = cluster.run("sh", "-c", words).stdout.strip()
    second = launch(cluster, stand_in, variables, training, *shared)
    assert second == first + BLOCKS
    jobs = [cluster.wait(number, FINISHED, LIMIT_S) for number in (first, second)]
    took = time.monotonic() - began
    runs = stand_in / "results" / "grpo_smollm2_cpu"
    logs = [(runs / str(n) / "job.log").read_text() for n in (first, second)]
    assert [job["JobState"] for job in jobs] == ["COMPLETED"] * 2, "\n".join(logs)
    print(f"took {took:.0f} s of {LIMIT_S}")
    said = [json.loads((folder / str(n)).read_text()) for n in (first, second)]
    assert [one["nodes"] for one in said] == [1, 1]
    assert [one["cpus"] for one in said] == [1.0, 1.0]
    assert len({job["NodeList"] for job in jobs}) == 1
    assert len({one["address"] for one in said}) == 2
    # Nobody waits for an orphan's end here, so it stays behind as a zombie.
    state = cluster.run("cat", f"/proc/{orphan}/status", check=False).stdout
    assert not state or "Z (zombie)" in state
    assert not list(short_dir.glob(f"nemo_rl-{first}-*"))
    assert not list(short_dir.glob(f"nemo_rl-{second}-*"))
