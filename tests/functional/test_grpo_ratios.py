"""Losses off policy on the real engine, TP2, against formulas written out in Python.

The batch comes from another policy and another generator, so ratios are clipped and
weights leave their bounds. Log-probs and entropies are Hugging Face's at the first
update, the engine's own after it. Does not cover how such a batch comes about.
"""

from __future__ import annotations

from math import exp, isclose, log
from typing import Any, NamedTuple

import pytest
import torch

from nemo_rl.algorithms.grpo.loss import GRPOLossFn
from tests.fakes import models
from tests.functional.engines import engine, grpo_batch, policy_config, shard
from tests.functional.ranks import run_ranks

ROWS = {"token_level_loss": False}
CORRECTED = {
    "use_importance_sampling_correction": True,
    "truncated_importance_sampling_ratio_min": 0.9,
    "truncated_importance_sampling_ratio": 1.1,
}
VARIANTS: dict[str, dict[str, Any]] = {
    # First, at the base weights: its entropies are compared with Hugging Face's.
    "entropy": {"entropy_coef": 0.5},
    "token": {"reference_policy_kl_penalty": 0.1, "ratio_clip_max": 0.1},
    "dr_grpo": {**ROWS, "constant_response_length": 20},
    "gspo": {
        **ROWS,
        "sequence_level_importance_ratios": True,
        "ratio_clip_min": 0.03,
        "ratio_clip_max": 0.03,
    },
    "gspo_tis": {**ROWS, **CORRECTED, "sequence_level_importance_ratios": True},
    "cispo": {"use_cispo": True, "ratio_clip_max": 0.1, "ratio_clip_min": 1.0},
    "tis": CORRECTED,
    "icepop": {**CORRECTED, "truncated_importance_sampling_type": "icepop"},
    "sequence_mask": {
        **CORRECTED,
        "truncated_importance_sampling_type": "seq-mask-tis",
        "truncated_importance_sampling_ratio_min": 0.97,
        "truncated_importance_sampling_ratio": 1.03,
    },
}


class Token(NamedTuple):
    """What a loss may know of one valid token."""

    cur: float
    prev: float
    gen: float
    ref: float
    advantage: float


def off_policy_batch(base: torch.Tensor) -> dict[str, torch.Tensor]:
    """A batch from another policy and another generator, near the base model's."""
    batch = grpo_batch()
    generator = torch.Generator().manual_seed(9)
    before, at_sampling = torch.randn(2, *base.shape, generator=generator)
    prev = base + 0.15 * before
    columns = {
        "prev_logprobs": prev,
        "generation_logprobs": prev + 0.1 * at_sampling,
        "reference_policy_logprobs": prev - 0.1,
    }
    mask = batch["token_mask"]
    return batch | {name: value * mask for name, value in columns.items()}


def hugging_face(folder: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, S] log-probs and entropies of the base model, column 0 not set."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )
    ids = grpo_batch()["input_ids"]
    with torch.no_grad():
        full = torch.log_softmax(model(ids).logits[:, :-1], -1)
    logprobs, entropy = torch.zeros(ids.shape), torch.zeros(ids.shape)
    logprobs[:, 1:] = full.gather(-1, ids[:, 1:, None])[..., 0]
    entropy[:, 1:] = -(full.exp() * full).sum(-1)
    return logprobs, entropy


def _train(rank: Any, folder: Any, tp: int) -> dict[str, Any]:
    slow = {"kwargs": {"lr": 1e-6, "eps": 1e-4}}
    config = policy_config(tp, logprob_chunk_size=7, optimizer=slow)
    backend = engine(rank, folder, config)
    base, entropy = hugging_face(folder)
    batch = off_policy_batch(base)
    results: dict[str, Any] = {"base": (base, entropy, batch)}
    for name, fields in VARIANTS.items():
        loss_fn = GRPOLossFn({"reference_policy_kl_penalty": 0.0, **fields})
        cur = backend.get_logprobs(batch)
        result = backend.train_step(shard(batch, rank, config), loss_fn)
        micro = result["micro_metrics"]
        names = [key for key in micro[0] if not key.endswith(("_min", "_max"))]
        metrics = {key: sum(part[key] for part in micro) for key in names}
        results[name] = (cur, metrics, result["grad_norm"])
    return results


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[int, dict[str, Any]]:
    folder = models.save(tmp_path_factory.mktemp("ratios") / "llama", "llama")
    return {tp: run_ranks(_train, tp, folder, tp)[0] for tp in (1, 2)}


def responses(trained: dict[int, dict[str, Any]], variant: str) -> list[list[Token]]:
    """Valid tokens of each response that counts, as they were before the update."""
    (_, _, batch), (cur, _, _) = trained[2]["base"], trained[2][variant]
    columns = ("prev_logprobs", "generation_logprobs", "reference_policy_logprobs")
    found = []
    for row in range(len(cur)):
        if batch["sample_mask"][row] == 0:
            continue
        tokens = [
            Token(
                float(cur[row, t]),
                *(float(batch[name][row, t]) for name in columns),
                float(batch["advantages"][row, t]),
            )
            for t in range(1, cur.shape[1])
            if batch["token_mask"][row, t] > 0
        ]
        found.append(tokens)
    return found


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    gain = min(ratio * advantage, clip(ratio, 1 - low, 1 + high) * advantage)
    return -gain


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def token_mean(values: list[list[float]]) -> float:
    return mean([v for row in values for v in row])


def per_token(t: Token, high: float = 0.2) -> float:
    return clipped(exp(t.cur - t.prev), t.advantage, 0.2, high)


def sequence_ratio(row: list[Token]) -> float:
    return exp(mean([t.cur - t.prev for t in row]))


def geometric(row: list[Token]) -> float:
    return exp(mean([t.prev - t.gen for t in row]))


def product(row: list[Token]) -> float:
    return exp(sum(t.prev - t.gen for t in row))


def weight(t: Token) -> float:
    return exp(t.prev - t.gen)


def kl(t: Token) -> float:
    return exp(t.ref - t.cur) - 1 - (t.ref - t.cur)


FORMULAS = {
    "token": lambda rows: token_mean(
        [[per_token(t, 0.1) + 0.1 * kl(t) for t in row] for row in rows]
    ),
    "dr_grpo": lambda rows: mean([sum(map(per_token, row)) / 20 for row in rows]),
    "gspo": lambda rows: mean(
        [clipped(sequence_ratio(r), r[0].advantage, 0.03, 0.03) for r in rows]
    ),
    "gspo_tis": lambda rows: mean(
        [
            clipped(sequence_ratio(r), r[0].advantage, 0.2, 0.2)
            * clip(product(r), 0.9, 1.1)
            for r in rows
        ]
    ),
    "cispo": lambda rows: token_mean(
        [
            [-clip(exp(t.cur - t.prev), 0.0, 1.1) * t.advantage * t.cur for t in row]
            for row in rows
        ]
    ),
    "tis": lambda rows: token_mean(
        [[per_token(t) * clip(weight(t), 0.9, 1.1) for t in row] for row in rows]
    ),
    "icepop": lambda rows: token_mean(
        [
            [per_token(t) * weight(t) * (0.9 <= weight(t) <= 1.1) for t in row]
            for row in rows
        ]
    ),
    "sequence_mask": lambda rows: token_mean(
        [
            [per_token(t) * weight(t) * (0.97 <= geometric(row) <= 1.03) for t in row]
            for row in rows
        ]
    ),
}


@pytest.mark.parametrize("variant", FORMULAS)
def test_loss_off_policy_is_the_formula(trained, variant) -> None:
    want = FORMULAS[variant](responses(trained, variant))
    _, metrics, _ = trained[2][variant]
    assert metrics["loss"] == pytest.approx(want, abs=1e-5)


def test_entropy_and_its_bonus_are_those_of_hugging_face(trained) -> None:
    logprobs, entropy, batch = trained[2]["base"]
    mask = batch["token_mask"] * batch["sample_mask"][:, None]
    want = float((entropy * mask).sum() / mask.sum())
    cur, metrics, _ = trained[2]["entropy"]
    assert metrics["entropy"] == pytest.approx(want, abs=1e-5)
    assert 0 < want < log(131)
    torch.testing.assert_close(cur * mask, logprobs * mask, atol=1e-5, rtol=1e-5)
    loss = token_mean(
        [list(map(per_token, row)) for row in responses(trained, "entropy")]
    )
    assert metrics["loss"] == pytest.approx(loss - 0.5 * want, abs=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_gradient_do_not_depend_on_the_layout(trained, variant) -> None:
    (_, one, norm), (_, two, other) = trained[1][variant], trained[2][variant]
    assert two == pytest.approx(one, abs=1e-5, rel=1e-4)
    assert isclose(norm, other, rel_tol=1e-4) and norm > 0


def test_the_batch_reaches_every_bound(trained) -> None:
    """Otherwise the formulas would agree whatever clips and masks do."""
    rows = responses(trained, "token")
    ratios = [exp(t.cur - t.prev) for row in rows for t in row]
    weights = [weight(t) for row in rows for t in row]
    assert min(ratios) < 0.8 and max(ratios) > 1.2
    assert min(weights) < 0.9 and max(weights) > 1.1
    for name, value in (("gspo", sequence_ratio), ("sequence_mask", geometric)):
        rows = responses(trained, name)
        inside = [abs(value(row) - 1) <= 0.03 for row in rows]
        assert any(inside) and not all(inside), name
