"""Every variant of docs/algorithms.md trains under TP2, from the paper's first loss.

The formulas are written out here over rollouts.jsonl and Hugging Face's log-probs of
the base model; nothing of nemo_rl.algorithms is called. With one update per step the
ratio is 1: what ratios do is in test_grpo_ratios.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import exp
from pathlib import Path
from statistics import fmean, pstdev, stdev
from typing import Any

import pytest
import torch

from tests.functional import tiny_task
from tests.functional.driver import environment
from tests.functional.grpo_variants import STEPS, folder_of, variants
from tests.functional.ranks import run_ranks

LONGEST = 5  # max_new_tokens of the task


@dataclass
class Response:
    """One line of the first step's rollouts, with the base model's log-probs."""

    reward: float
    group: int
    truncated: bool
    logprobs: list[float]
    reference: list[float]

    @property
    def length(self) -> int:
        return len(self.logprobs)


Rows = list[Response]
PerToken = list[list[float]]


def others(rows: Rows, row: Response) -> list[float]:
    return [o.reward for o in rows if o.group == row.group and o is not row]


def group(rows: Rows, row: Response) -> list[float]:
    return [o.reward for o in rows if o.group == row.group]


def standardised(rows: Rows, row: Response) -> float:
    """(r - mean) / std of the prompt's rewards."""
    rewards = group(rows, row)
    return (row.reward - fmean(rewards)) / stdev(rewards) if stdev(rewards) else 0.0


def library_default(rows: Rows, row: Response) -> float:
    """(r - mean of the others) / std of the prompt's rewards."""
    deviation = stdev(group(rows, row))
    return (row.reward - fmean(others(rows, row))) / deviation if deviation else 0.0


def spread(rows: Rows, advantage: Callable[[Rows, Response], float]) -> PerToken:
    return [[advantage(rows, row)] * row.length for row in rows]


def over_tokens(values: PerToken) -> float:
    return fmean(v for row in values for v in row)


def over_rows(values: PerToken) -> float:
    return fmean(fmean(row) for row in values)


def k1(row: Response) -> list[float]:
    return [c - r for c, r in zip(row.logprobs, row.reference, strict=True)]


def k2(row: Response) -> list[float]:
    return [x * x / 2 for x in k1(row)]


def k3(row: Response) -> list[float]:
    return [exp(-x) - 1 + x for x in k1(row)]


def combined(rows: Rows, advantages: PerToken, beta: float, kl: Callable) -> PerToken:
    return [
        [-a + beta * d for a, d in zip(line, kl(row), strict=True)]
        for line, row in zip(advantages, rows, strict=True)
    ]


def grpo(rows: Rows) -> tuple[PerToken, float]:
    advantages = spread(rows, standardised)
    return advantages, over_rows(combined(rows, advantages, 0.04, k3))


def dapo(rows: Rows) -> tuple[PerToken, float]:
    mixed = [row for row in rows if len(set(group(rows, row))) > 1]
    first = list(dict.fromkeys(row.group for row in mixed))[:4]
    kept = [row for row in mixed if row.group in first]
    punished = [
        Response(
            row.reward - min(1.0, max(0.0, (row.length - (LONGEST - 2)) / 2)),
            row.group,
            row.truncated,
            row.logprobs,
            row.reference,
        )
        for row in kept
    ]
    advantages = spread(punished, standardised)
    return advantages, -over_tokens(advantages)


def dr_grpo(rows: Rows) -> tuple[PerToken, float]:
    advantages = spread(rows, lambda rs, r: r.reward - fmean(group(rs, r)))
    return advantages, -fmean(sum(line) / 512 for line in advantages)


def gspo(rows: Rows) -> tuple[PerToken, float]:
    advantages = spread(rows, standardised)
    return advantages, -over_rows(advantages)


def cispo(rows: Rows) -> tuple[PerToken, float]:
    advantages = spread(rows, standardised)
    values = [
        [-a * c for a, c in zip(line, row.logprobs, strict=True)]
        for line, row in zip(advantages, rows, strict=True)
    ]
    return advantages, over_tokens(values)


def rloo(rows: Rows) -> tuple[PerToken, float]:
    charged = [
        Response(
            row.reward - 0.1 * sum(k1(row)),
            row.group,
            row.truncated,
            row.logprobs,
            row.reference,
        )
        for row in rows
    ]
    advantages = spread(charged, lambda rs, r: r.reward - fmean(others(rs, r)))
    return advantages, -fmean(sum(line) for line in advantages)


def normal(values: PerToken) -> PerToken:
    flat = [v for row in values for v in row]
    return [[(v - fmean(flat)) / pstdev(flat) for v in row] for row in values]


def plus_plus(rows: Rows) -> tuple[PerToken, float]:
    to_go = [
        [row.reward - 0.01 * sum(k1(row)[t:]) for t in range(row.length)]
        for row in rows
    ]
    return normal(to_go), -over_tokens(normal(to_go))


def plus_plus_baseline(rows: Rows) -> tuple[PerToken, float]:
    advantages = normal(spread(rows, lambda rs, r: r.reward - fmean(group(rs, r))))
    return advantages, over_tokens(combined(rows, advantages, 0.01, k2))


def default(rows: Rows) -> tuple[PerToken, float]:
    """Where trainer and generator agree and r = 1, corrections change nothing."""
    advantages = spread(rows, library_default)
    return advantages, over_tokens(combined(rows, advantages, 0.01, k3))


def stop_properly(rows: Rows) -> tuple[PerToken, float]:
    return default(
        [
            Response(
                0.0 if row.truncated else row.reward,
                row.group,
                row.truncated,
                row.logprobs,
                row.reference,
            )
            for row in rows
        ]
    )


FORMULAS = {
    "GRPO": grpo,
    "DAPO": dapo,
    "Dr. GRPO": dr_grpo,
    "GSPO": gspo,
    "CISPO": cispo,
    "RLOO": rloo,
    "REINFORCE++": plus_plus,
    "REINFORCE++ with baseline": plus_plus_baseline,
    "dual clip": default,
    "truncated importance sampling": default,
    "IcePop": default,
    "sequence mask": default,
    "stop properly": stop_properly,
    "entropy bonus": default,
}


def test_every_variant_of_the_page_has_its_formula_here() -> None:
    assert list(FORMULAS) == list(variants())


def _warm(_: Any, folder: Path) -> str:
    return str(tiny_task.make_model(folder, sft_steps=10))


def _reference(_: Any, model: Path, folders: list[Path]) -> list[list[list[float]]]:
    """Hugging Face's log-probs of the first step's responses, per folder."""
    import transformers

    network = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32
    )
    found = []
    for folder in folders:
        lines = []
        for row in first_rows(folder):
            ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
            with torch.no_grad():
                logprobs = torch.log_softmax(network(ids).logits[0, :-1], -1)
            values = logprobs.gather(-1, ids[0, 1:, None])[:, 0]
            lines.append(values[len(row["prompt_ids"]) - 1 :].tolist())
        found.append(lines)
    return found


def first_rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "rollouts.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["step"] == 1]


@dataclass
class Trained:
    """What the variants left behind."""

    out: Path
    references: dict[str, list[list[float]]]

    def rows(self, variant: str) -> Rows:
        return [
            Response(
                row["reward"],
                row["group"],
                row["truncated"],
                row["logprobs"],
                reference,
            )
            for row, reference in zip(
                first_rows(folder_of(self.out, variant)),
                self.references[variant],
                strict=True,
            )
        ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    out = tmp_path_factory.mktemp("variants")
    (model,) = run_ranks(_warm, 1, out / "model")
    module = "tests.functional.grpo_variants"
    done = subprocess.run(
        [sys.executable, "-m", module, str(out), model],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    names = list(variants())
    folders = [folder_of(out, name) for name in names]
    (references,) = run_ranks(_reference, 1, Path(model), folders)
    return Trained(out, dict(zip(names, references, strict=True)))


@pytest.mark.slow
@pytest.mark.parametrize("variant", FORMULAS)
def test_variant_trains_from_the_papers_first_loss(trained, variant) -> None:
    folder = folder_of(trained.out, variant)
    history = json.loads((folder / "history.json").read_text())
    assert len(history) == STEPS
    first = history[0]
    assert first["token_mult_prob_error"] == pytest.approx(1.0, abs=1e-4)
    rows = trained.rows(variant)
    assert len({row.reward for row in rows}) > 1
    advantages, loss = FORMULAS[variant](rows)
    batch = torch.load(folder / "batch.pt")
    got = [
        line[mask > 0].tolist()
        for line, mask in zip(batch["advantages"], batch["token_mask"], strict=True)
    ]
    for mine, theirs in zip(got, advantages, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4, rel=1e-4)
    if variant == "entropy bonus":
        loss -= 0.001 * first["entropy"]
    assert first["loss"] == pytest.approx(loss, abs=1e-5, rel=1e-4)
    assert all(step["grad_norm"] > 0 for step in history)


@pytest.mark.slow
def test_dynamic_sampling_dropped_prompts_and_sampled_more(trained) -> None:
    folder = folder_of(trained.out, "DAPO")
    history = json.loads((folder / "history.json").read_text())
    assert max(step["dynamic_sampling_batches"] for step in history) > 1
    assert all(step["num_completions"] == 16 for step in history)


@pytest.mark.slow
def test_the_reference_is_no_longer_the_policy(trained) -> None:
    """Otherwise the terms with a divergence would say nothing."""
    assert max(abs(x) for row in trained.rows("REINFORCE++") for x in k1(row)) > 0.01
