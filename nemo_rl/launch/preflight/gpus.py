"""Checks of a node's GPUs by nvidia-smi: count, errors, clocks, driver.

Asks the program, not a library: it is there wherever the driver is.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

from nemo_rl.launch.preflight.checks import (
    WARN,
    Check,
    Context,
    Finding,
    bad,
    ok,
    skipped,
)

LIMIT_S = 20.0
NO_GPUS = "no GPUs asked for"
SLOWED = {
    "hw_slowdown": "power or heat",
    "hw_thermal_slowdown": "heat",
    "hw_power_brake_slowdown": "the power supply",
}
"""Reason nvidia-smi gives for a lowered clock -> what lowers it."""


def _ask(context: Context, *arguments: str) -> list[str] | str:
    """Return the lines nvidia-smi prints, or why it prints none."""
    program = "nvidia-smi"
    try:
        done = subprocess.run(
            [program, *arguments],
            env=dict(context.variables),
            text=True,
            capture_output=True,
            timeout=LIMIT_S - 2,
            check=False,
        )
    except FileNotFoundError:
        return f"{program} is not there"
    except subprocess.TimeoutExpired:
        return f"{program} hangs"
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not lines:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        return said[-1] if said else f"{program} ended with {done.returncode}"
    return lines


def _query(context: Context, *fields: str) -> list[list[str]] | str:
    query = f"--query-gpu={','.join(fields)}"
    lines = _ask(context, query, "--format=csv,noheader,nounits")
    if isinstance(lines, str):
        return lines
    return [[word.strip() for word in line.split(",")] for line in lines]


def _broken(said: str) -> Finding:
    return bad(
        said,
        "nvidia-smi answers",
        "the driver is not loaded, a GPU fell off the bus, or the container has no "
        "access to GPUs; drain the node (dmesg shows the Xid)",
    )


def count(context: Context) -> Finding:
    """Whether the node shows as many GPUs as were asked for."""
    if not context.gpus:
        return skipped(NO_GPUS)
    rows = _query(context, "index")
    if isinstance(rows, str):
        return _broken(rows)
    visible = context.variables.get("CUDA_VISIBLE_DEVICES")
    seen = len(rows)
    if visible is not None:
        seen = min(seen, len([name for name in visible.split(",") if name.strip()]))
    limit = f"{context.gpus} asked for"
    if seen >= context.gpus:
        return ok(f"{seen} GPUs", limit)
    return bad(f"{seen} GPUs", limit, "a GPU is lost: drain the node, look for an Xid")


def ecc(context: Context) -> Finding:
    """Whether a GPU's memory had errors it could not correct since the last reset."""
    if not context.gpus:
        return skipped(NO_GPUS)
    rows = _query(context, "index", "ecc.errors.uncorrected.volatile.total")
    if isinstance(rows, str):
        return _broken(rows)
    wrong = {row[0]: row[1] for row in rows if row[1].isdigit() and int(row[1])}
    if not wrong:
        known = sum(row[1].isdigit() for row in rows)
        return ok(f"0 uncorrected on {known} of {len(rows)} GPUs with ECC", "0")
    text = ", ".join(f"GPU {gpu}: {number}" for gpu, number in wrong.items())
    return bad(f"{text} uncorrected", "0", "reset these GPUs, or have them replaced")


def clocks(context: Context) -> Finding:
    """Whether the hardware itself slows a GPU down."""
    if not context.gpus:
        return skipped(NO_GPUS)
    rows: list[list[str]] | str = ""
    # The newer name first; drivers before 535 only know the other.
    for prefix in ("clocks_event_reasons", "clocks_throttle_reasons"):
        rows = _query(context, "index", *(f"{prefix}.{name}" for name in SLOWED))
        if not isinstance(rows, str):
            break
    if isinstance(rows, str):
        return bad(rows, "nvidia-smi says", "cannot tell here", verdict=WARN)
    slow = [
        f"GPU {row[0]} by {SLOWED[name]}"
        for row in rows
        for name, word in zip(SLOWED, row[1:], strict=False)
        if word == "Active"
    ]
    if slow:
        cure = "all others wait for it: look after cooling and power, drain the node"
        return bad(f"slowed: {', '.join(slow)}", "none", cure)
    return ok(f"none of {len(rows)} slowed", "none")


def driver(context: Context) -> Finding:
    """Whether the driver is new enough for the CUDA that torch was built with."""
    if not context.gpus:
        return skipped(NO_GPUS)
    lines = _ask(context)
    if isinstance(lines, str):
        return _broken(lines)
    match = re.search(r"CUDA (?:\w+ )?Version\s*:\s*(\d+)\.(\d+)", "\n".join(lines))
    if match is None:
        return skipped("nvidia-smi does not say which CUDA the driver has")
    wanted = torch_cuda()
    if wanted is None:
        cure = "install a torch with CUDA in the job's environment (NEMO_RL_PYTHON)"
        return bad("torch is missing or built for CPUs", "torch for CUDA", cure)
    text = f"driver CUDA {match[1]}.{match[2]}, torch CUDA {wanted}"
    # Within a major version, minor versions go together.
    if int(match[1]) < int(wanted.partition(".")[0]):
        cure = "use an image for an older CUDA, or a newer driver"
        return bad(text, "driver not older than torch", cure)
    return ok(text, "driver not older than torch")


def torch_cuda() -> str | None:
    """Return the CUDA version torch was built with, without importing torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).with_name("version.py")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, flags=re.M)
    return match[1] if match else None


CHECKS = (
    Check("gpus", "every rank needs a GPU of its own", count, LIMIT_S),
    Check("ecc", "broken memory gives wrong numbers or ends the run", ecc, LIMIT_S),
    Check("clocks", "one slow GPU makes all others wait", clocks, LIMIT_S),
    Check("driver", "an old driver cannot run torch's kernels", driver, LIMIT_S),
)
