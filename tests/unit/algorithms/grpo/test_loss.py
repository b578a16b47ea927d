"""The GRPO loss against numbers worked out by hand, and its invariances.

Covers plain tensors; that the engine feeds them rightly is tests/functional's matter.
"""

from __future__ import annotations

import re
from math import inf, log

import pytest
import torch

from nemo_rl.algorithms.grpo.config import ClippedPGLossConfig
from nemo_rl.algorithms.grpo.loss import GRPOLossFn, kl_divergence
from nemo_rl.backends.training.base import LossFunction, ModelOutput, needs_entropy
from nemo_rl.utils.exceptions import ConfigurationError, DataError

GARBAGE = 7.0  # in column 0, which no loss may read


def config(**fields) -> ClippedPGLossConfig:
    return ClippedPGLossConfig(**{"reference_policy_kl_penalty": 0.0, **fields})


def rows(values) -> torch.Tensor:
    """[b, S-1] numbers to [b, S] with a column 0 that must not matter."""
    tensor = torch.tensor(values, dtype=torch.float32)
    return torch.cat([torch.full((len(tensor), 1), GARBAGE), tensor], dim=1)


def run(batch, cur, entropy=None, **fields):
    """Loss, metrics and d loss / d cur without column 0, counts filled in."""
    cur = cur.clone().requires_grad_(True)
    batch = dict(batch)
    if "global_valid_tokens" not in batch:
        mask = batch["token_mask"][:, 1:] * batch["sample_mask"][:, None]
        batch["global_valid_tokens"] = mask.sum()
        batch["global_valid_seqs"] = batch["sample_mask"].sum()
    output = ModelOutput(logprobs=cur, entropy=entropy)
    loss, metrics = GRPOLossFn(config(**fields))(batch, output)
    loss.backward()
    assert (cur.grad[:, 0] == 0).all()
    return loss.item(), {k: v.item() for k, v in metrics.items()}, cur.grad[:, 1:]


def batch_of(advantages, mask=None, sample_mask=None, **columns):
    advantages = rows(advantages)
    mask = torch.ones_like(advantages) if mask is None else rows(mask)
    mask[:, 0] = 0.0
    if sample_mask is None:
        sample_mask = [1.0] * len(advantages)
    return {
        "advantages": advantages,
        "token_mask": mask,
        "sample_mask": torch.tensor(sample_mask),
        **{name: rows(value) for name, value in columns.items()},
    }


def ratios(*values):
    """Current log-probs that give these ratios to previous ones of 0.5."""
    return rows([[log(0.5 * value) for value in values]])


def prev(count):
    return [[log(0.5)] * count]


def test_clipped_surrogate_on_both_sides():
    batch = batch_of([[1.0, 1.0, -1.0, -1.0]], prev_logprobs=prev(4))
    loss, metrics, grad = run(batch, ratios(1.5, 0.5, 1.5, 0.5))
    # -min(1.5, 1.2), -min(0.5, 0.8), -min(-1.5, -1.2), -min(-0.5, -0.8)
    assert loss == pytest.approx((-1.2 - 0.5 + 1.5 + 0.8) / 4)
    # Where the clip is active nothing pulls; elsewhere d r / d cur = r.
    torch.testing.assert_close(grad, torch.tensor([[0.0, -0.5, 1.5, 0.0]]) / 4)
    assert metrics["clip_fraction"] == 1.0
    assert metrics["ratio"] == pytest.approx(1.0)
    assert (metrics["ratio_min"], metrics["ratio_max"]) == pytest.approx((0.5, 1.5))


def test_clip_bounds_are_separate():
    batch = batch_of([[1.0, 1.0, -1.0, -1.0]], prev_logprobs=prev(4))
    fields = {"ratio_clip_min": 0.1, "ratio_clip_max": 0.5}
    loss, metrics, _ = run(batch, ratios(1.4, 1.6, 0.95, 0.5), **fields)
    # inside 1.5: -1.4; beyond it: -1.5; inside 0.9: 0.95; below it: 0.9
    assert loss == pytest.approx((-1.4 - 1.5 + 0.95 + 0.9) / 4)
    assert metrics["clip_fraction"] == pytest.approx(0.5)


def test_dual_clip_bounds_negative_advantages_alone():
    batch = batch_of([[-1.0, -1.0, 1.0, -2.0]], prev_logprobs=prev(4))
    loss, _, grad = run(batch, ratios(5.0, 2.0, 5.0, 4.0), ratio_clip_c=3.0)
    # 5 is bounded by 3 * 1, 2 is not, +1 stays at the upper clip, 8 by 3 * 2
    assert loss == pytest.approx((3.0 + 2.0 - 1.2 + 6.0) / 4)
    torch.testing.assert_close(grad, torch.tensor([[0.0, 2.0, 0.0, 0.0]]) / 4)
    without, _, _ = run(batch, ratios(5.0, 2.0, 5.0, 4.0))
    assert without == pytest.approx((5.0 + 2.0 - 1.2 + 8.0) / 4)


def test_one_update_per_rollout_is_the_policy_gradient():
    batch = batch_of([[2.0, -1.0], [0.5, 3.0]], mask=[[1, 1], [1, 0]])
    cur = rows([[-1.0, -2.0], [-3.0, -4.0]])
    loss, metrics, grad = run(batch, cur)
    assert loss == pytest.approx(-(2.0 - 1.0 + 0.5) / 3)
    # d/d cur of -A log pi, averaged over the three valid tokens
    expected = torch.tensor([[-2.0, 1.0], [-0.5, 0.0]]) / 3
    torch.testing.assert_close(grad, expected)
    assert metrics["ratio"] == pytest.approx(1.0)
    assert metrics["ratio_min"] == metrics["ratio_max"] == 1.0
    assert metrics["clip_fraction"] == 0.0


def test_force_on_policy_ratio_ignores_previous_logprobs():
    batch = batch_of([[1.0]], prev_logprobs=[[log(0.1)]])
    cur = rows([[log(0.5)]])
    clipped, _, _ = run(batch, cur)
    forced, metrics, grad = run(batch, cur, force_on_policy_ratio=True)
    assert clipped == pytest.approx(-1.2)
    assert forced == pytest.approx(-1.0)
    assert metrics["ratio"] == pytest.approx(1.0)
    assert grad.item() == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("kind", "value", "slope"),
    [
        # current 0.5, reference 0.25: log-ratio x = ln(0.25 / 0.5) = -0.693147
        ("k1", 0.693147, 1.0),
        ("k2", 0.240227, 0.693147),  # x^2 / 2, and -x
        ("k3", 0.193147, 0.5),  # e^x - 1 - x, and 1 - e^x
    ],
)
def test_kl_penalty(kind, value, slope):
    batch = batch_of([[0.0]], reference_policy_logprobs=[[log(0.25)]])
    fields = {"reference_policy_kl_type": kind, "reference_policy_kl_penalty": 0.1}
    loss, metrics, grad = run(batch, rows([[log(0.5)]]), **fields)
    assert loss == pytest.approx(0.1 * value, rel=1e-5)
    assert grad.item() == pytest.approx(0.1 * slope, rel=1e-5)
    assert metrics["kl"] == pytest.approx(value, rel=1e-5)


def test_kl_clamps_before_and_after_the_exponential():
    x = torch.tensor([1000.0, -1000.0, 2.0])
    k3 = kl_divergence(x, config(reference_policy_kl_type="k3"))
    torch.testing.assert_close(k3, torch.tensor([10.0, 10.0, 4.389056]))
    k1 = kl_divergence(x, config(reference_policy_kl_type="k1"))
    torch.testing.assert_close(k1, torch.tensor([-10.0, 10.0, -2.0]))
    wide = config(reference_policy_kl_type="k1", kl_output_clamp_value=None)
    assert kl_divergence(x, wide).tolist() == [-20.0, 20.0, -2.0]
    free = config(
        reference_policy_kl_type="k1",
        kl_input_clamp_value=None,
        kl_output_clamp_value=None,
    )
    assert kl_divergence(x, free).tolist() == [-1000.0, 1000.0, -2.0]


def test_kl_on_policy_approximation_weights_value_and_gradient():
    batch = batch_of(
        [[0.0]],
        reference_policy_logprobs=[[log(0.25)]],
        generation_logprobs=[[log(0.25)]],
    )
    fields = {
        "reference_policy_kl_type": "k2",
        "reference_policy_kl_penalty": 1.0,
        "use_on_policy_kl_approximation": True,
    }
    loss, _, grad = run(batch, rows([[log(0.5)]]), **fields)
    # weight 0.5 / 0.25 = 2; k2 = 0.240227; d(w k)/d cur = w k + w k'
    assert loss == pytest.approx(2 * 0.240227, rel=1e-5)
    assert grad.item() == pytest.approx(2 * (0.240227 + 0.693147), rel=1e-5)


def test_importance_sampling_correction_and_its_truncation():
    batch = batch_of(
        [[1.0, 1.0]],
        prev_logprobs=[[log(0.5), log(0.2)]],
        generation_logprobs=[[log(0.25), log(0.4)]],
    )
    cur = rows([[log(0.5), log(0.2)]])
    plain, metrics, _ = run(batch, cur)
    assert plain == pytest.approx(-1.0)
    assert metrics["sampling_importance_ratio"] == pytest.approx((2.0 + 0.5) / 2)
    on = {"use_importance_sampling_correction": True}
    corrected, _, grad = run(batch, cur, **on)
    assert corrected == pytest.approx(-(2.0 + 0.5) / 2)
    torch.testing.assert_close(grad, torch.tensor([[-2.0, -0.5]]) / 2)
    truncated, _, _ = run(batch, cur, truncated_importance_sampling_ratio=1.5, **on)
    assert truncated == pytest.approx(-(1.5 + 0.5) / 2)


def test_kl_is_clamped_after_it_is_weighted():
    batch = batch_of(
        [[0.0]],
        reference_policy_logprobs=[[log(0.25)]],
        generation_logprobs=[[log(0.5) - 9.0]],
    )
    fields = {
        "reference_policy_kl_type": "k1",
        "reference_policy_kl_penalty": 1.0,
        "use_on_policy_kl_approximation": True,
    }
    loss, _, grad = run(batch, rows([[log(0.5)]]), **fields)
    assert (loss, grad.item()) == (10.0, 0.0)


def test_divergences_of_trainer_and_generator():
    batch = batch_of(
        [[0.0]], prev_logprobs=[[log(0.6)]], generation_logprobs=[[log(0.2)]]
    )
    _, metrics, _ = run(batch, rows([[log(0.6)]]))

    def k3(ratio):
        return ratio - 1 - log(ratio)

    # Of the generator 3 - 1 - ln 3, back 1/3 - 1 + ln 3; the mean of both is 0.4.
    assert metrics["gen_kl"] == pytest.approx(k3(3.0), rel=1e-5)
    assert metrics["policy_kl"] == pytest.approx(k3(1 / 3), rel=1e-5)
    want = (k3(0.6 / 0.4) + k3(0.2 / 0.4)) / 2
    assert metrics["js_divergence"] == pytest.approx(want, rel=1e-5)
    assert metrics["token_mult_prob_error"] == pytest.approx(3.0, rel=1e-5)


def test_importance_weight_that_overflows_counts_as_zero():
    batch = batch_of(
        [[1.0, 1.0]],
        prev_logprobs=[[-0.5, -0.5]],
        generation_logprobs=[[-200.0, -0.5]],
    )
    on = {"use_importance_sampling_correction": True}
    loss, _, grad = run(batch, rows([[-0.5, -0.5]]), **on)
    assert loss == pytest.approx(-0.5)
    torch.testing.assert_close(grad, torch.tensor([[0.0, -0.5]]))


def test_sampler_mismatch_metrics():
    batch = batch_of(
        [[1.0, 1.0]],
        prev_logprobs=[[log(0.5), log(0.2)]],
        generation_logprobs=[[log(0.25), log(0.4)]],
    )
    _, metrics, _ = run(batch, rows([[log(0.5), log(0.2)]]))
    # exp|x| = 2 both times; e^x - 1 - x with x = ln 2 and -ln 2
    assert metrics["token_mult_prob_error"] == pytest.approx(2.0)
    expected = ((2 - 1 - log(2)) + (0.5 - 1 + log(2))) / 2
    assert metrics["gen_kl"] == pytest.approx(expected, rel=1e-5)
    assert metrics["approx_entropy"] == pytest.approx(-(log(0.5) + log(0.2)) / 2)


def test_token_level_and_sequence_level_averages():
    batch = batch_of([[1.0, 1.0, 1.0], [5.0, 9.0, 9.0]], mask=[[1, 1, 1], [1, 0, 0]])
    cur = rows([[-1.0] * 3] * 2)
    by_token, _, token_grad = run(batch, cur)
    by_row, _, row_grad = run(batch, cur, token_level_loss=False)
    assert by_token == pytest.approx(-(3 * 1.0 + 5.0) / 4)
    assert by_row == pytest.approx(-(1.0 + 5.0) / 2)
    torch.testing.assert_close(token_grad[:, 0], torch.tensor([-1 / 4, -5 / 4]))
    torch.testing.assert_close(row_grad[:, 0], torch.tensor([-1 / 6, -5 / 2]))


def test_sequence_level_average_counts_sampled_rows_only():
    batch = batch_of([[1.0, 1.0], [5.0, 5.0]], sample_mask=[1.0, 0.0])
    loss, _, grad = run(batch, rows([[-1.0] * 2] * 2), token_level_loss=False)
    assert loss == pytest.approx(-1.0)
    assert (grad[1] == 0).all()


ROWS = {"token_level_loss": False}
VARIANTS = {
    "token": {"ratio_clip_c": 3.0},
    "row": {**ROWS, "ratio_clip_c": 3.0},
    "constant": {**ROWS, "constant_response_length": 20},
    "gspo": {**ROWS, "sequence_level_importance_ratios": True},
    "cispo": {"use_cispo": True},
    "icepop": {
        "truncated_importance_sampling_type": "icepop",
        "truncated_importance_sampling_ratio_min": 0.8,
        "truncated_importance_sampling_ratio": 1.25,
    },
    "sequence mask": {
        "truncated_importance_sampling_type": "seq-mask-tis",
        "truncated_importance_sampling_ratio_min": 0.9,
        "truncated_importance_sampling_ratio": 1.1,
    },
}
LEVELS = pytest.mark.parametrize("variant", VARIANTS)
EVERYTHING = {
    "reference_policy_kl_penalty": 0.1,
    "use_on_policy_kl_approximation": True,
    "use_importance_sampling_correction": True,
}
MAY_BE_BROKEN = [
    "prev_logprobs",
    "generation_logprobs",
    "reference_policy_logprobs",
    "advantages",
]


def random_batch(count=6, columns=9):
    generator = torch.Generator().manual_seed(0)

    def normal():
        return torch.randn(count, columns, generator=generator)

    mask = (torch.rand(count, columns, generator=generator) > 0.4).float()
    mask[:, -1] = 1.0
    base = normal() - 2.0
    batch = {
        "advantages": normal(),
        "token_mask": mask,
        "sample_mask": torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])[:count],
        "prev_logprobs": base + 0.3 * normal(),
        "generation_logprobs": base + 0.3 * normal(),
        "reference_policy_logprobs": base + 0.3 * normal(),
    }
    return batch, base


@LEVELS
def test_masked_equals_sliced(variant):
    """Rows and trailing columns without a valid token may be cut off or be garbage."""
    fields = {**EVERYTHING, **VARIANTS[variant]}
    batch, cur = random_batch()
    batch["token_mask"][:, 6:] = 0.0
    batch["token_mask"][:, 5] = 1.0
    kept = batch["sample_mask"] > 0
    sliced = {
        name: value[kept] if value.dim() == 1 else value[kept][:, :6]
        for name, value in batch.items()
    }
    want, want_metrics, want_grad = run(sliced, cur[kept][:, :6], **fields)
    for name in ("prev_logprobs", "generation_logprobs", "reference_policy_logprobs"):
        batch[name] = torch.where(batch["token_mask"] > 0, batch[name], -80.0)
        batch[name][~kept] = 80.0
    batch["advantages"][:, 6:] = 1e6
    got, metrics, grad = run(batch, cur, **fields)
    assert got == pytest.approx(want, rel=1e-5)
    assert metrics == pytest.approx(want_metrics, rel=1e-5)
    torch.testing.assert_close(grad[kept][:, :5], want_grad)
    assert (grad[~kept] == 0).all()
    assert (grad[:, 5:] == 0).all()


@LEVELS
@pytest.mark.parametrize("size", [1, 2, 4])
def test_shares_of_micro_batches_sum_to_the_whole(variant, size):
    fields = {**EVERYTHING, **VARIANTS[variant]}
    batch, cur = random_batch()
    mask = batch["token_mask"][:, 1:] * batch["sample_mask"][:, None]
    counts = {
        "global_valid_tokens": mask.sum(),
        "global_valid_seqs": batch["sample_mask"].sum(),
    }
    whole, metrics, grad = run({**batch, **counts}, cur, **fields)
    parts = []
    for start in range(0, len(cur), size):
        micro = {name: value[start : start + size] for name, value in batch.items()}
        parts.append(run({**micro, **counts}, cur[start : start + size], **fields))
    assert sum(loss for loss, _, _ in parts) == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(torch.cat([g for _, _, g in parts]), grad)
    for name, value in metrics.items():
        values = [m[name] for _, m, _ in parts]
        joined = {"ratio_max": max, "ratio_min": min}.get(name, sum)(values)
        assert joined == pytest.approx(value, rel=1e-5), name


@LEVELS
@pytest.mark.parametrize("which", ["token_mask", "sample_mask"])
def test_everything_masked_gives_zero_with_a_finite_gradient(variant, which):
    fields = {**EVERYTHING, **VARIANTS[variant]}
    batch, cur = random_batch()
    batch[which] = torch.zeros_like(batch[which])
    loss, metrics, grad = run(batch, cur, **fields)
    assert loss == 0.0
    assert (grad == 0).all()
    # Another micro-batch decides the extremes.
    assert (metrics.pop("ratio_max"), metrics.pop("ratio_min")) == (-inf, inf)
    assert all(torch.isfinite(torch.tensor(v)) for v in metrics.values())


def test_extremes_are_those_of_valid_tokens():
    batch = batch_of([[1.0, 1.0, 1.0]], mask=[[1.0, 1.0, 0.0]], prev_logprobs=prev(3))
    _, metrics, _ = run(batch, ratios(1.5, 1.25, 1.0))
    assert metrics["ratio_min"] == pytest.approx(1.25)
    assert metrics["ratio_max"] == pytest.approx(1.5)


@LEVELS
@pytest.mark.parametrize("value", [float("nan"), -inf, inf])
@pytest.mark.parametrize("name", ["cur", *MAY_BE_BROKEN])
def test_what_is_masked_may_be_anything(variant, value, name):
    fields = {**EVERYTHING, **VARIANTS[variant]}
    batch, cur = random_batch()
    want = run(batch, cur, **fields)
    values = batch | {"cur": cur}
    masked = (batch["token_mask"] == 0) & (torch.arange(cur.shape[1]) > 0)
    assert masked.any()
    values[name] = values[name].masked_fill(masked, value)
    cur = values.pop("cur")
    got = run(values, cur, **fields)
    assert got[:2] == want[:2]
    assert torch.equal(got[2], want[2])


def test_a_token_that_became_impossible_or_certain_keeps_the_gradient_finite():
    far = [[-200.0, 0.0]]
    batch = batch_of([[-1.0, -1.0]], prev_logprobs=[[0.0, -200.0]])
    loss, metrics, grad = run(batch, rows(far))
    assert torch.isfinite(torch.tensor(loss)) and torch.isfinite(grad).all()
    assert all(torch.isfinite(torch.tensor(v)) for v in metrics.values())


def test_batch_without_generation_logprobs_has_no_mismatch():
    batch = batch_of([[1.0]], prev_logprobs=[[log(0.5)]])
    loss, metrics, _ = run(batch, rows([[log(0.5)]]))
    assert loss == pytest.approx(-1.0)
    assert metrics["sampling_importance_ratio"] == 1.0
    assert metrics["gen_kl"] == 0.0


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"use_importance_sampling_correction": True}, "generation_logprobs (for use_"),
        ({"reference_policy_kl_penalty": 0.5}, "reference_policy_logprobs (for refer"),
        ({}, "advantages (for every loss)"),
    ],
)
def test_a_missing_column_is_an_error_and_not_a_zero(fields, text):
    batch = batch_of([[1.0]])
    if not fields:
        del batch["advantages"]
    with pytest.raises(DataError, match=re.escape(f"the batch lacks columns: {text}")):
        run(batch, rows([[-1.0]]), **fields)


def test_loss_does_not_change_its_inputs():
    batch, cur = random_batch()
    before = {name: value.clone() for name, value in batch.items()}
    run(batch, cur, **EVERYTHING)
    assert all(torch.equal(batch[name], before[name]) for name in before)


def test_gspo_gives_a_response_one_ratio():
    batch = batch_of(
        [[1.0, 1.0], [-1.0, 5.0]], [[1, 1], [1, 0]], prev_logprobs=prev(2) * 2
    )
    fields = {**ROWS, "sequence_level_importance_ratios": True}
    cur = rows([[log(0.5 * 4.0), log(0.5 * 0.25)], [log(0.5 * 1.1), 3.0]])
    loss, metrics, grad = run(batch, cur, **fields)
    # sqrt(4 * 0.25) = 1 and 1.1; every token of a response has its ratio
    assert loss == pytest.approx((-1.0 + 1.1) / 2)
    torch.testing.assert_close(grad, torch.tensor([[-0.5, -0.5], [1.1, 0.0]]) / 2)
    assert metrics["ratio"] == pytest.approx((1.0 + 1.0 + 1.1) / 3)
    # As tokens, both of the first response would have been clipped or not on their own.
    plain, _, _ = run(batch, cur, **ROWS)
    assert plain == pytest.approx(((-1.2 - 0.25) / 2 + 1.1) / 2)


def test_gspo_clips_a_whole_response():
    batch = batch_of([[1.0, 1.0]], prev_logprobs=prev(2))
    fields = {**ROWS, "sequence_level_importance_ratios": True, "ratio_clip_max": 4e-4}
    loss, metrics, grad = run(batch, ratios(1.1, 1.0), **fields)
    assert loss == pytest.approx(-1.0004)
    assert (grad == 0).all()
    assert metrics["clip_fraction"] == 1.0


def test_cispo_weights_the_log_prob_by_the_clipped_ratio():
    batch = batch_of([[2.0, -1.0]], prev_logprobs=prev(2))
    loss, metrics, grad = run(batch, ratios(1.6, 0.5), use_cispo=True)
    # weights 1.2 and 0.8 at log-probs ln 0.8 and ln 0.25
    want = -(1.2 * 2.0 * log(0.8) - 0.8 * log(0.25)) / 2
    assert loss == pytest.approx(want)
    torch.testing.assert_close(grad, torch.tensor([[-2.4, 0.8]]) / 2)
    assert metrics["clip_fraction"] == 1.0


def test_dr_grpo_divides_by_a_constant_length():
    batch = batch_of([[1.0, 1.0], [-2.0, 9.0]], [[1, 1], [1, 0]])
    fields = {**ROWS, "constant_response_length": 8}
    loss, _, grad = run(batch, rows([[-1.0, -1.0]] * 2), **fields)
    assert loss == pytest.approx((-2 + 2) / 8 / 2)
    torch.testing.assert_close(grad, torch.tensor([[-1.0, -1.0], [2.0, 0.0]]) / 16)


def test_a_masked_weight_takes_the_token_out_but_not_out_of_the_mean():
    batch = batch_of(
        [[1.0, 1.0]], prev_logprobs=prev(2), generation_logprobs=[[log(0.1), log(0.5)]]
    )
    fields = {"use_importance_sampling_correction": True, **VARIANTS["icepop"]}
    loss, metrics, grad = run(batch, ratios(1.0, 1.0), **fields)
    assert loss == pytest.approx(-0.5)
    torch.testing.assert_close(grad, torch.tensor([[0.0, -0.5]]))
    assert metrics["importance_masked_fraction"] == 0.5


def test_entropy_bonus_and_metric():
    batch = batch_of([[1.0, 1.0]], mask=[[1.0, 0.0]])
    entropy = rows([[2.0, float("nan")]]).requires_grad_(True)
    cur = rows([[-1.0, -1.0]])
    loss, metrics, _ = run(batch, cur, entropy, entropy_coef=0.1)
    assert loss == pytest.approx(-1.0 - 0.1 * 2.0)
    assert metrics["entropy"] == 2.0
    torch.testing.assert_close(entropy.grad, torch.tensor([[0.0, -0.1, 0.0]]))
    logged, metrics, _ = run(batch, cur, entropy, log_entropy=True)
    assert (logged, metrics["entropy"]) == (-1.0, 2.0)
    _, metrics, _ = run(batch, cur, entropy)
    assert "entropy" not in metrics


def test_entropy_that_the_engine_does_not_give_is_an_error():
    with pytest.raises(ConfigurationError, match="loss_fn.entropy_coef to 0"):
        run(batch_of([[1.0]]), rows([[-1.0]]), entropy_coef=0.1)


def test_penalty_in_the_reward_is_not_in_the_loss():
    batch = batch_of([[1.0]], prev_logprobs=[[-1.0]])
    fields = {"reference_policy_kl_penalty": 0.5, "use_kl_in_reward": True}
    loss, metrics, _ = run(batch, rows([[-1.0]]), **fields)
    assert (loss, metrics["kl"]) == (-1.0, 0.0)


def test_without_a_configuration_it_has_the_defaults():
    loss_fn = GRPOLossFn()
    assert loss_fn.config == ClippedPGLossConfig()
    assert GRPOLossFn({"ratio_clip_max": 0.3}).config.ratio_clip_max == 0.3
    batch = batch_of([[1.0]], reference_policy_logprobs=[[-1.0]])
    counts = {
        "global_valid_tokens": torch.ones(()),
        "global_valid_seqs": torch.ones(()),
    }
    loss, _ = loss_fn({**batch, **counts}, ModelOutput(rows([[-1.0]])))
    assert loss.item() == -1.0
    del batch["reference_policy_logprobs"]
    with pytest.raises(DataError, match="policy.get_reference_logprobs"):
        loss_fn({**batch, **counts}, ModelOutput(rows([[-1.0]])))


def test_loss_is_a_loss_function_and_travels():
    import pickle

    loss = GRPOLossFn(config(ratio_clip_max=0.3, log_entropy=True))
    assert isinstance(loss, LossFunction)
    copy = pickle.loads(pickle.dumps(loss))
    assert copy.config.ratio_clip_max == 0.3
    assert needs_entropy(copy) and not needs_entropy(GRPOLossFn())


@pytest.mark.parametrize("known", [False, True])
def test_old_responses_give_the_gradient_of_the_present_policy(known):
    """Importance weights in closed form: sum over all answers, as mu samples them.

    With mu the policy that sampled, pi the present one, the gradient of the mean of
    pi / mu A over samples of mu is that of the expected A under pi, exactly, whether
    the log-probs before the update are given or are those of the update itself
    (Hilton et al. 2021, arXiv:2110.00641, section 3: the proximal policy is pi).
    """
    mu = torch.tensor([0.5, 0.3, 0.15, 0.05])
    reward = torch.tensor([1.0, -2.0, 0.5, 3.0])
    scores = torch.tensor([0.2, -0.4, 0.9, 0.1], requires_grad=True)
    wanted = torch.autograd.grad(-(torch.softmax(scores, 0) * reward).sum(), scores)[0]

    def gradient(**fields):
        cur = torch.log_softmax(scores, 0)
        logprobs = cur.detach()[:, None].tolist()
        columns = {"generation_logprobs": mu.log()[:, None].tolist()}
        if known:
            columns["prev_logprobs"] = logprobs
        # Every answer once, as heavy as mu makes it: the mean is the expectation.
        batch = batch_of((4 * mu * reward)[:, None].tolist(), **columns)
        _, _, slopes = run(batch, rows(logprobs), **fields)
        return torch.autograd.grad(cur, scores, slopes[:, 0])[0]

    corrected = gradient(use_importance_sampling_correction=True)
    assert torch.allclose(corrected, wanted, atol=1e-6)
    assert not torch.allclose(gradient(), wanted, atol=1e-2)
    # Truncated weights are those of min(pi / mu, bound).
    pi = torch.softmax(scores, 0)
    weights = (pi / mu).clamp(max=1.5).detach()
    bounded = torch.autograd.grad(
        -(mu * weights * reward * torch.log_softmax(scores, 0)).sum(), scores
    )[0]
    truncated = gradient(
        use_importance_sampling_correction=True,
        truncated_importance_sampling_ratio=1.5,
    )
    assert (pi / mu).max() > 1.5
    assert torch.allclose(truncated, bounded, atol=1e-6)
