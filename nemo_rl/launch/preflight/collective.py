"""The all-reduce of `allreduce.py` as checks: start it, read it, name outliers."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_rl.launch.preflight.checks import FAIL, WARN, Finding, bad, ok

SLOW = 0.25
"""Share of the median below which a link is slow."""
NODE_NAME = "allreduce"
RING_NAME = "fabric"
NODE_S = 35.0
"""For the first stage, the import of torch among it."""
FABRIC_S = 20.0
"""For the second."""


def command(
    folder: Path, *, ranks: int, gpus: bool, alone: bool, python: str = sys.executable
) -> list[str]:
    """Return the command of the program.

    Args:
        folder: node-local; gets local.json, go.json and global.json.
        ranks: ranks of this node.
        gpus: NCCL on GPUs; else gloo.
        alone: there is no second stage.
        python: interpreter.
    """
    words = [python, "-m", "nemo_rl.launch.preflight.allreduce", f"--ranks={ranks}"]
    words += [f"--mib={64 if gpus else 4}", *(["--gpus"] if gpus else [])]
    words.append(f"--local={folder / 'local.json'}")
    if not alone:
        words += [f"--go={folder / 'go.json'}", f"--global={folder / 'global.json'}"]
    return words


def read(path: Path) -> list[dict[str, Any]] | None:
    """Return a result, None while there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def judge_late(folder: Path, kind: str) -> Finding:
    """Judge a first stage without an end: a slow import is no node's fault."""
    text, limit = f"{kind}: no end in {NODE_S:.0f} s", f"{NODE_S:.0f} s"
    if not (folder / "local.began").exists():
        cure = "torch is still being imported: is its file system slow?"
        return bad(text, limit, cure, verdict=WARN)
    return bad(text, limit, "it hangs: GPUs, their links, or the interface it chose")


def judge_node(ranks: Sequence[Mapping[str, Any]], kind: str) -> Finding:
    """Judge the first stage: all ranks of one node."""
    errors = {rank["error"] for rank in ranks if "error" in rank}
    limit = "the right sum"
    if errors:
        cure = "the GPUs or their links are broken: drain the node"
        return bad(f"{kind}: {'; '.join(sorted(errors))}", limit, cure)
    slowest = max(rank["seconds"] for rank in ranks)
    return ok(f"{kind}, {len(ranks)} ranks: {slowest * 1e3:.1f} ms", limit)


def judge_ring(
    nodes: Sequence[str], found: Mapping[str, Sequence[Mapping[str, Any]]], kind: str
) -> dict[str, Finding]:
    """Judge the second stage: one finding per node.

    A node is an outlier where the links to it and from it are both slow: one slow
    link alone may be its neighbour's. Over gloo this only warns, as its speed is that
    of whoever has the CPU.

    Args:
        nodes: in the order of their ranks.
        found: node -> results of its ranks; empty where there were none.
        kind: nccl or gloo.
    """
    limit = f"links above {SLOW:.0%} of the median"
    missing = {
        n for ranks in found.values() for r in ranks for n in r.get("missing", ())
    }
    missing |= {node for node in nodes if not found.get(node)}
    cure = "it cannot reach the others: see its network, drain it"
    if missing:
        late = bad(f"{kind}: did not come to the all-reduce", limit, cure)
        fine = ok(f"{kind}: waited for {', '.join(sorted(missing))}", limit)
        return {node: late if node in missing else fine for node in nodes}
    errors = {
        node: [rank["error"] for rank in found[node] if "error" in rank]
        for node in nodes
    }
    if any(errors.values()):
        # Everybody's all-reduce fails by one: no node can be told from the others.
        return {
            node: bad(f"{kind}: {errors[node][0]}", limit, "see the fabric")
            if errors[node]
            else ok(kind, limit)
            for node in nodes
        }
    into = {node: min(rank["link_gbps"] for rank in found[node]) for node in nodes}
    out = {node: into[nodes[(i + 1) % len(nodes)]] for i, node in enumerate(nodes)}
    median = statistics.median(into.values())
    findings = {}
    for node in nodes:
        text = f"{kind}: {into[node]:.2f} GB/s in, {out[node]:.2f} out"
        slow = max(into[node], out[node]) < SLOW * median and len(nodes) > 2
        text += f", median {median:.2f}"
        findings[node] = (
            bad(text, limit, cure, verdict=FAIL if kind == "nccl" else WARN)
            if slow
            else ok(text, limit)
        )
    return findings
