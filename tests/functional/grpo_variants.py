"""Trains every GRPO variant of docs/algorithms.md on one group of workers, TP2.

Run as a module with a folder and a model: each variant leaves its logs, its history and
its first training batch in a folder of its own.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

from nemo_rl.algorithms.grpo.trainer import GRPOTrainer
from nemo_rl.config.loading import apply_overrides
from nemo_rl.data.tokenizer import load_tokenizer
from nemo_rl.infra.resources import ResourceManager
from nemo_rl.models.policy.lm_policy import Policy
from tests.functional import tiny_task
from tests.functional.driver import ROOT, merge

STEPS = 5

REWARD = '''
def score(prompt: str, response: str) -> float:
    """Share of even digits; the same for every response to each third prompt."""
    if int(prompt[:4]) % 3 == 0:
        return 0.25
    return sum(letter in "02468" for letter in response) / 5
'''


def variants() -> dict[str, list[str]]:
    """Variant -> overrides, as the table of docs/algorithms.md has them."""
    page = (ROOT / "docs" / "algorithms.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+=[^|]+) \| [^|]+ \|$", page, flags=re.M)
    return {name: re.findall(r"`([^`]+)`", keys) for name, keys in rows}


def folder_of(out: Path, variant: str) -> Path:
    return out / re.sub(r"\W+", "_", variant)


def recipe(model: Path, out: Path, variant: str) -> dict[str, Any]:
    """Four prompts, four responses of at most five tokens, one update per step."""
    base = merge(
        tiny_task.recipe(model, tp=2),
        {
            "policy": {"train_micro_batch_size": 8},
            "grpo": {
                "num_prompts_per_step": 4,
                "num_generations_per_prompt": 4,
                "max_num_steps": STEPS,
                "val_period": 0,
                "val_at_start": False,
                "reward_shaping": {"overlong_buffer_length": 2},
                # Set for every variant by what its row says.
                "use_leave_one_out_baseline": True,
            },
            "loss_fn": {"ratio_clip_max": 0.2, "reference_policy_kl_penalty": 0.01},
            "env": {"reward_fn": "graded:score"},
            "checkpointing": {"enabled": False},
            "logger": {
                "log_dir": str(folder_of(out, variant)),
                "save_rollouts": True,
                "tensorboard_enabled": False,
                "console": "off",
            },
        },
    )
    return apply_overrides(base, variants()[variant])


class WatchedPolicy(Policy):
    """Keeps the first batch that it trains on after it was told where."""

    path: Path | None = None

    def train(self, data: Any, loss_fn: Any) -> dict[str, Any]:
        if self.path is not None:
            torch.save(dict(data), self.path)
            self.path = None
        return super().train(data, loss_fn)


def main(out: Path, model: Path) -> None:
    (out / "graded.py").write_text(REWARD)
    names = list(variants())
    first = GRPOTrainer(recipe(model, out, names[0])).config
    resources = ResourceManager(first.cluster)
    policy = WatchedPolicy(
        resources.allocate(),
        first.policy,
        load_tokenizer(model),
        keep_reference=True,
        threads=1,
    )
    for name in names:
        trainer = GRPOTrainer(recipe(model, out, name), policy=policy)
        trainer.config.recipe_dir = out
        folder = folder_of(out, name)
        folder.mkdir(parents=True)
        policy.path = folder / "batch.pt"
        result = trainer.fit()
        (folder / "history.json").write_text(json.dumps(result.history))
    policy.shutdown()
    resources.release()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
