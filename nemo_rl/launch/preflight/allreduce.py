"""A program: all-reduce among the ranks of this node, then among all nodes.

torch is imported once; the ranks are forked, so the second stage starts at once. What
it finds goes into two files; it waits for the file `go` between the stages. It uses
NCCL where the node has GPUs and gloo elsewhere. Knows nothing about Ray and SLURM.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from nemo_rl.utils.imports import require

MISSING_S = 8.0
TIMEOUT = timedelta(seconds=15)
WAIT_FOR_GO_S = 90.0
ROUNDS = 3


def main() -> int:
    """Run both stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=1, help="ranks of this node")
    parser.add_argument("--mib", type=int, default=8, help="size of what is reduced")
    parser.add_argument("--gpus", action="store_true", help="NCCL on GPUs, not gloo")
    parser.add_argument("--local", type=Path, required=True, help="first result")
    parser.add_argument("--go", type=Path, help="says when and with whom to go on")
    parser.add_argument("--global", dest="everywhere", type=Path, help="second result")
    options = parser.parse_args()
    require("torch")
    options.local.with_suffix(".began").touch()
    meeting = tempfile.mktemp(prefix="allreduce-", dir=options.local.parent)

    def local(rank: int) -> dict[str, Any]:
        dist = require("torch.distributed")
        store = dist.FileStore(meeting, options.ranks)
        return _measure(options, store, rank=rank, world=options.ranks)

    _publish(options.local, _forked(options.ranks, local))
    Path(meeting).unlink(missing_ok=True)
    if options.go is None:
        return 0
    deadline = time.monotonic() + WAIT_FOR_GO_S
    while not options.go.exists():
        if time.monotonic() > deadline or os.getppid() == 1:
            return 0
        time.sleep(0.1)
    plan = json.loads(options.go.read_text(encoding="utf-8"))

    def everywhere(rank: int) -> dict[str, Any]:
        return _among_nodes(options, plan, rank)

    _publish(options.everywhere, _forked(options.ranks, everywhere))
    return 0


def _publish(path: Path, found: list[dict[str, Any]]) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.replace(path)


def _forked(ranks: int, work: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    """Run `work` in a process per rank; an error is a result too."""
    pipes = []
    for rank in range(ranks):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            try:
                found = work(rank)
            except Exception as error:  # noqa: BLE001 - reported, in another process
                text = str(error).strip() or type(error).__name__
                found = {"error": text.splitlines()[0][:300]}
            os.write(writer, json.dumps(found).encode())
            os._exit(0)
        os.close(writer)
        pipes.append((pid, reader))
    results = []
    for pid, reader in pipes:
        with os.fdopen(reader, "rb") as file:
            text = file.read()
        _, status = os.waitpid(pid, 0)
        lost = {"error": f"the rank ended with status {status}"}
        results.append(json.loads(text) if text else lost)
    return results


def _among_nodes(options: Any, plan: dict[str, Any], local: int) -> dict[str, Any]:
    """Meet at the head; who does not come is named by the head's first rank."""
    dist = require("torch.distributed")
    nodes: list[str] = plan["nodes"]
    rank = plan["index"] * options.ranks + local
    world = len(nodes) * options.ranks
    store = dist.TCPStore(
        plan["address"],
        plan["port"],
        is_master=rank == 0,
        wait_for_workers=False,
        timeout=TIMEOUT,
    )
    store.set(f"here-{rank}", "1")
    if rank == 0:
        missing = _missing(store, world)
        absent = sorted({nodes[number // options.ranks] for number in missing})
        store.set("state", json.dumps(absent))
        if absent:
            time.sleep(1)  # The others read it from this process.
            return {"error": f"did not come: {', '.join(absent)}", "missing": absent}
    absent = json.loads(store.get("state"))
    if absent:
        return {"error": f"waited for {', '.join(absent)}"}
    meeting = dist.PrefixStore("ranks", store)
    found = _measure(options, meeting, rank=rank, world=world)
    store.add("done", 1)
    # The first rank holds the store: it leaves last.
    deadline = time.monotonic() + 5
    while rank == 0 and store.add("done", 0) < world and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _missing(store: Any, world: int) -> list[int]:
    deadline = time.monotonic() + MISSING_S
    absent = list(range(world))
    while absent and time.monotonic() < deadline:
        absent = [rank for rank in absent if not store.check([f"here-{rank}"])]
        time.sleep(0.02)
    return absent


def _measure(options: Any, store: Any, *, rank: int, world: int) -> dict[str, Any]:
    """Reduce a tensor among all, check the sum, time it and the link from before."""
    torch = require("torch")
    dist = require("torch.distributed")
    device = torch.device("cpu")
    if options.gpus:
        device = torch.device("cuda", rank % options.ranks)
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    backend = "nccl" if options.gpus else "gloo"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT
    )
    numel = options.mib * 2**20 // 4
    seconds = []
    for _ in range(ROUNDS):
        data = torch.full((numel,), float(rank + 1), device=device)
        began = time.monotonic()
        dist.all_reduce(data)
        total = float(data[0]), float(data[-1])
        seconds.append(time.monotonic() - began)
        expected = world * (world + 1) / 2
        if total != (expected, expected):
            return {"error": f"the sum is {total[0]:g}, not {expected:g}"}
    link = _link(options, rank, world, device) if world > options.ranks else None
    dist.barrier()
    dist.destroy_process_group()
    gigabytes = numel * 4 / 1e9
    return {
        "seconds": min(seconds),
        "gbps": 2 * (world - 1) / world * gigabytes / min(seconds),
        "link_gbps": link,
    }


def _link(options: Any, rank: int, world: int, device: Any) -> float:
    """Return GB/s from the same rank of the node before."""
    torch = require("torch")
    dist = require("torch.distributed")
    numel = options.mib * 2**20 // 4
    there = torch.empty(numel, device=device)
    ours = torch.ones(numel, device=device)
    to, source = (rank + options.ranks) % world, (rank - options.ranks) % world
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.monotonic()
        both = [dist.P2POp(dist.isend, ours, to), dist.P2POp(dist.irecv, there, source)]
        for work in dist.batch_isend_irecv(both):
            work.wait()
        float(there[-1])
        best = min(best, time.monotonic() - began)
    return numel * 4 / 1e9 / best


if __name__ == "__main__":
    sys.exit(main())
