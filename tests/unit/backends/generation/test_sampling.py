"""The sampler's distribution, support and independence of rows."""

from __future__ import annotations

from math import sqrt

import pytest
import torch

from nemo_rl.backends.generation.base import SamplingParams
from nemo_rl.backends.generation.sampling import sample, uniforms

PROBS = torch.tensor([0.05, 0.4, 0.1, 0.15, 0.3])
JUST_BELOW_ONE = 1.0 - 2.0**-53


def params(**fields) -> SamplingParams:
    return SamplingParams(max_new_tokens=1, max_total_length=9, **fields)


def draw(logits, uniform, **fields):
    """Tokens and log-probs of one row of logits at many uniform numbers."""
    uniform = torch.as_tensor(uniform, dtype=torch.float64).reshape(-1)
    return sample(logits.expand(len(uniform), -1), uniform, params(**fields))


def shares(tokens, vocab=5):
    return torch.bincount(tokens, minlength=vocab) / len(tokens)


def assert_drawn_from(tokens, probs):
    """Every count within five standard deviations of its expectation."""
    for share, p in zip(shares(tokens).tolist(), probs.tolist(), strict=True):
        assert abs(share - p) <= 5 * sqrt(p * (1 - p) / len(tokens)), (share, p)


@pytest.fixture(scope="module")
def noise():
    return uniforms(torch.arange(20_000) + 100, 1)[:, 0]


def test_sample_follows_the_softmax(noise):
    tokens, _ = draw(PROBS.log(), noise)
    assert_drawn_from(tokens, PROBS)


def test_sample_follows_the_temperature(noise):
    tokens, logprobs = draw(PROBS.log(), noise, temperature=2.0)
    flatter = PROBS.sqrt() / PROBS.sqrt().sum()
    assert_drawn_from(tokens, flatter)
    torch.testing.assert_close(logprobs, flatter.log()[tokens])


def test_sample_inverts_the_cumulative_distribution():
    edges = [0.0, 0.049, 0.051, 0.449, 0.451, 0.549, 0.551, 0.699, 0.701, 0.999]
    tokens, _ = draw(PROBS.log(), edges)
    assert tokens.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_sample_logprobs_are_those_before_top_k_and_top_p(noise):
    tokens, logprobs = draw(PROBS.log() + 3.0, noise, top_k=2, top_p=0.6)
    torch.testing.assert_close(logprobs, PROBS.log()[tokens])
    assert logprobs.dtype == torch.float32
    assert tokens.dtype == torch.int64


@pytest.mark.parametrize(
    ("k", "support"), [(1, [1]), (2, [1, 4]), (3, [1, 3, 4]), (5, [0, 1, 2, 3, 4])]
)
def test_top_k_keeps_exactly_the_k_likeliest(noise, k, support):
    tokens, _ = draw(PROBS.log(), noise, top_k=k)
    assert tokens.unique().tolist() == support
    kept = torch.zeros(5)
    kept[support] = PROBS[support]
    assert_drawn_from(tokens, kept / kept.sum())


def test_top_k_beyond_the_vocabulary_keeps_all(noise):
    tokens, _ = draw(PROBS.log(), noise, top_k=50)
    assert torch.equal(tokens, draw(PROBS.log(), noise)[0])


@pytest.mark.parametrize(
    ("p", "support"),
    [
        (0.01, [1]),
        (0.39, [1]),
        (0.41, [1, 4]),  # 0.4 does not reach it, 0.4 + 0.3 does
        (0.69, [1, 4]),
        (0.71, [1, 3, 4]),
        (0.94, [1, 2, 3, 4]),
        (0.96, [0, 1, 2, 3, 4]),
    ],
)
def test_top_p_keeps_exactly_the_smallest_nucleus(noise, p, support):
    tokens, _ = draw(PROBS.log(), noise, top_p=p)
    assert tokens.unique().tolist() == support


def test_top_p_is_taken_of_what_top_k_leaves(noise):
    # Of 0.4, 0.3, 0.15 (sum 0.85) a nucleus of 0.8 needs 0.68: two tokens.
    # Of the whole distribution it would need three.
    tokens, _ = draw(PROBS.log(), noise, top_k=3, top_p=0.8)
    assert tokens.unique().tolist() == [1, 4]
    assert draw(PROBS.log(), noise, top_p=0.8)[0].unique().tolist() == [1, 3, 4]


def test_greedy_takes_the_likeliest_whatever_the_noise():
    tokens, logprobs = draw(PROBS.log(), [0.0, 0.5, JUST_BELOW_ONE], temperature=0.0)
    assert tokens.tolist() == [1, 1, 1]
    torch.testing.assert_close(logprobs, torch.full((3,), 0.4).log())


@pytest.mark.parametrize("uniform", [0.0, 0.5, JUST_BELOW_ONE, 1.0])
@pytest.mark.parametrize(
    "zeros", [[0], [4], [0, 4], [0, 1], [3, 4], [1, 2, 3], [0, 1, 3, 4]]
)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 3.0])
def test_token_of_probability_zero_is_never_chosen(uniform, zeros, scale):
    logits = (PROBS * scale).log()
    logits[zeros] = -torch.inf
    tokens, logprobs = draw(logits, [uniform])
    assert tokens.item() not in zeros
    assert torch.isfinite(logprobs).all()


def test_filtered_out_tail_is_not_reached_just_below_one():
    # The last token of the vocabulary is outside the nucleus.
    logits = torch.tensor([0.6, 0.3, 0.05, 0.05]).log()
    assert draw(logits, [JUST_BELOW_ONE], top_p=0.5)[0].tolist() == [0]
    assert draw(logits, [JUST_BELOW_ONE], top_k=2)[0].tolist() == [1]


def test_rows_do_not_depend_on_their_batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 33, generator=generator) * 3
    noise = torch.rand(7, generator=generator, dtype=torch.float64)
    chosen = params(top_k=9, top_p=0.9, temperature=0.7)
    tokens, logprobs = sample(logits, noise, chosen)
    for row in range(7):
        one = slice(row, row + 1)
        token, logprob = sample(logits[one], noise[one], chosen)
        assert token.item() == tokens[row].item()
        assert logprob.item() == logprobs[row].item()
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    assert torch.equal(sample(logits[order], noise[order], chosen)[0], tokens[order])


def test_sample_leaves_the_logits_as_they_were():
    logits = PROBS.log()[None].clone()
    before = logits.clone()
    sample(logits, torch.tensor([0.3], dtype=torch.float64), params(top_k=2))
    assert torch.equal(logits, before)


def test_uniforms_belong_to_the_seed_alone():
    one = uniforms(torch.tensor([7, 8, 9]), 4)
    other = uniforms(torch.tensor([9, 7]), 6)
    assert one.shape == (3, 4)
    assert one.dtype == torch.float64
    assert torch.equal(other[:, :4], one[[2, 0]])
    assert len(set(one.flatten().tolist())) == 12
    assert ((one >= 0) & (one < 1)).all()


def test_uniforms_take_any_63_bit_seed_and_no_rows():
    assert uniforms(torch.tensor([2**63 - 1]), 2).shape == (1, 2)
    assert uniforms(torch.empty(0, dtype=torch.int64), 3).shape == (0, 3)


def test_uniforms_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    uniforms(torch.tensor([1]), 3)
    assert torch.equal(torch.get_rng_state(), state)
