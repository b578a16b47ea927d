"""A driver that trains nothing: reports the cluster, for tests of the bring-up."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import ray


def main() -> None:
    """Run one task on each node, then do what the overrides ask for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--run-dir", type=Path)
    options = parser.parse_intermixed_args()
    asked = dict(item.split("=", 1) for item in options.overrides)
    began = time.monotonic()
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    nodes = sorted(n["NodeManagerHostname"] for n in ray.nodes() if n["Alive"])
    cpus = int(ray.cluster_resources()["CPU"])
    print(f"seen {nodes} cpus {cpus} after {time.monotonic() - began:.1f} s")

    @ray.remote(num_cpus=2)
    def where() -> tuple[str, list[str]]:
        slurm = [name for name in os.environ if name.startswith("SLURM_")]
        time.sleep(float(asked.get("work_s", 0.5)))
        return ray.util.get_node_ip_address(), slurm

    print("ran on", sorted(ray.get([where.remote() for _ in nodes])), flush=True)
    raise SystemExit(int(asked.get("exit", 0)))


if __name__ == "__main__":
    main()
