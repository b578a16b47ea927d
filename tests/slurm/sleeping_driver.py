"""In the place of the driver: joins Ray and "trains" by sleeping, a worker per node.

All around it is real, so that a test can kill what it likes within seconds. Every step
saves; overrides say more: `grpo.max_num_steps=N`, `env.reward_fn=WORD` fails as WORD.
"""

from __future__ import annotations

import os
import sys
import time

from nemo_rl.launch.real_driver import *  # noqa: F403 - others import its names
from nemo_rl.launch.real_driver import PROGRESS, RESOLVED  # noqa: F401

from nemo_rl.launch import real_driver


class Sleeper:
    """The worker."""

    def __init__(self, rank_info):
        self.rank = rank_info.rank
        print("the sleeper of rank", self.rank, "begins", file=sys.stderr, flush=True)

    def step(self, number, mistake):
        time.sleep(0.1)
        if self.rank == 1 and mistake == "full":
            raise OSError(28, "No space left on device", "/checkpoints")
        if self.rank == 1 and mistake == "crash":
            os.kill(os.getpid(), 11)


def run(recipe, overrides, run_dir, moments):
    """Sleep from the last step to the end."""
    from nemo_rl.distributed.virtual_cluster import RayVirtualCluster

    wanted = dict(text.split("=", 1) for text in overrides)
    nodes = int(wanted["cluster.num_nodes"])
    cluster = RayVirtualCluster([1] * nodes, use_gpus=False, timeout_s=240.0)
    group = cluster.start_workers(Sleeper)
    mistake = wanted.get("env.reward_fn", "").rpartition(":")[2]
    path = run_dir / PROGRESS
    first = int(path.read_text()) + 1 if path.exists() else 1
    for step in range(first, int(wanted["grpo.max_num_steps"]) + 1):
        group.run_all("step", step, mistake)
        if mistake == "bug":
            raise KeyError("the driver has a bug")
        partial = path.with_suffix(".tmp")
        partial.write_text(str(step))
        partial.replace(path)
        print("slept step", step, flush=True)
    cluster.shutdown()
    return 0


if __name__ == "__main__":
    real_driver.run = run
    sys.exit(real_driver.main())
