"""Curves of a tiny model under every algorithm, one after the other, as pictures.

A random Llama of 0.1 M parameters learns to write four digits backwards: from answers
(SFT), then from rewards (GRPO), from pairs (DPO), as a judge of pairs (reward model),
and from its better self (distillation). Two processes on this machine, no GPU. Training
answers are sampled, held-out answers are the likeliest ones.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import platform
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.page import cpu_model
from nemo_rl.api.functional import create_trainer
from tests.functional import tiny_task

GALLERY = Path(__file__).resolve().parents[1] / "docs" / "gallery"
PANELS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "sft": (("loss", "loss", "nats per token"),),
    "grpo": (("reward", "accuracy", "reward, accuracy"),),
    "dpo": (
        ("loss", "loss", "loss"),
        ("rewards_margin", "rewards_margin", "margin of implicit rewards"),
        ("accuracy", "accuracy", "accuracy"),
    ),
    "rm": (("loss", "loss", "loss"), ("accuracy", "accuracy", "accuracy")),
    "distillation": (
        ("loss", "", "divergence, nats per token"),
        ("reward", "accuracy", "reward, accuracy"),
    ),
}
"""Algorithm -> (training metric, validation metric, label) of each panel."""
TITLES = {
    "sft": "Supervised fine-tuning of a random model",
    "grpo": "GRPO of the fine-tuned model",
    "dpo": "DPO of the fine-tuned model",
    "rm": "A reward model from the fine-tuned model",
    "distillation": "A weaker model learns from the one that GRPO made",
}


def run(recipe: Mapping[str, Any], folder: Path) -> Any:
    """Train in a folder of its own; the result of ``fit``."""
    recipe = {
        **recipe,
        "checkpointing": {
            **recipe["checkpointing"],
            "checkpoint_dir": str(folder / "checkpoints"),
        },
        "logger": {"log_dir": str(folder / "logs"), "monitor_gpus": False},
    }
    return create_trainer(recipe).fit()


def train_all(scratch: Path) -> dict[str, Any]:
    """Every algorithm's result, each beginning with what another one made."""
    random = tiny_task.make_model(scratch / "random", sft_steps=0)
    recipe = tiny_task.sft_recipe(random)
    recipe["sft"] |= {"val_period": 10, "val_at_start": True}
    results = {"sft": run(recipe, scratch / "sft")}
    tuned = results["sft"].hf_export_path
    recipe = tiny_task.recipe(tuned, tp=2)
    recipe["grpo"] |= {"val_period": 20}
    results["grpo"] = run(recipe, scratch / "grpo")
    pairs = scratch / "pairs"
    for algorithm in ("dpo", "rm"):
        recipe = tiny_task.pairs_recipe(algorithm, tuned, pairs / "train.jsonl")
        recipe[algorithm] |= {"max_num_steps": 60, "max_num_epochs": 5}
        recipe[algorithm] |= {"val_period": 10}
        results[algorithm] = run(recipe, scratch / algorithm)
    weak = tiny_task.make_model(scratch / "weak", sft_steps=40)
    recipe = tiny_task.distillation_recipe(weak, results["grpo"].hf_export_path)
    recipe["distillation"] |= {"max_num_steps": 120, "val_period": 20}
    results["distillation"] = run(recipe, scratch / "distillation")
    return results


def draw(algorithm: str, result: Any, folder: Path) -> Path:
    """One picture: a panel per metric, training and validation over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = PANELS[algorithm]
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(1.6 + 4 * len(panels), 3.6), squeeze=False
    )
    for axis, (training, validation, label) in zip(axes[0], panels, strict=True):
        _line(axis, result.history, training, "C0", f"training: {training}")
        held_out = f"held out: {validation}"
        _line(axis, result.validation_history, validation, "C3", held_out, "o-")
        axis.set_xlabel("step")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.suptitle(TITLES[algorithm])
    figure.tight_layout()
    path = folder / f"{algorithm}.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _line(
    axis: Any,
    rows: Sequence[Mapping[str, float]],
    name: str,
    colour: str,
    label: str,
    style: str = "-",
) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        label = label.replace("_", " ")
        axis.plot(*zip(*points, strict=True), style, color=colour, label=label)


def page(results: Mapping[str, Any]) -> str:
    """The gallery's page: pictures, first and last numbers, where they come from."""
    lines = ["# Gallery", "", (__doc__ or "").partition("\n\n")[2].strip(), ""]
    for algorithm, result in results.items():
        changes = []
        for training, validation, _ in PANELS[algorithm]:
            rows = result.validation_history if validation else result.history
            values = [row[validation or training] for row in rows]
            words = "held-out " if validation else ""
            name = (validation or training).replace("_", " ")
            changes.append(f"{words}{name} {values[0]:.3f} → {values[-1]:.3f}")
        lines += [
            f"## {TITLES[algorithm]}",
            "",
            f"{result.steps} steps; {'; '.join(changes)}.",
            "",
            f"![{TITLES[algorithm]}]({algorithm}.png)",
            "",
        ]
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "megatron-core", "ray")
    )
    return "\n".join(
        [
            *lines,
            f"- Date: {datetime.date.today().isoformat()}",
            f"- Machine: {cpu_model()}, 2 processes, TP2 or PP2",
            f"- Versions: Python {platform.python_version()}, {versions}",
            "- Command: `make gallery`; one run each, no seed was chosen",
            "",
        ]
    )


def main() -> None:
    """Train, draw, write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gallery")
    parser.add_argument("--folder", type=Path, default=GALLERY)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        results = train_all(Path(scratch))
    for algorithm, result in results.items():
        print(draw(algorithm, result, options.folder))
    (options.folder / "README.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
