"""Token log-probs and entropies against torch, whole and over real gloo ranks."""

from __future__ import annotations

from math import log

import pytest
import torch

from nemo_rl.backends.training.logprobs import (
    likeliest_tokens,
    mask_padding,
    token_entropy,
    token_logprobs,
)
from tests.functional.ranks import run_ranks

VOCAB, TOKENS = 11, 6


def case(width: int = VOCAB):
    """Logits [T, width] over a vocabulary of VOCAB, targets [T], weights [T]."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(TOKENS, width, generator=generator) * 4
    # The padding would win every softmax that it took part in.
    logits[:, VOCAB:] = 50.0
    targets = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    targets[0], targets[1] = 0, VOCAB - 1
    return logits, targets, torch.randn(TOKENS, generator=generator)


def expected(width: int = VOCAB, temperature: float = 1.0):
    """Values and gradient of the weighted sum, by plain torch in fp64."""
    logits, targets, weights = case(width)
    logits = logits.double().requires_grad_(True)
    logprobs = torch.log_softmax(logits[:, :VOCAB] / temperature, -1)
    values = logprobs.gather(-1, targets[:, None])[:, 0]
    (values * weights).sum().backward()
    return values.detach().float(), logits.grad.float()


def check(logits, targets, weights, want, want_grad, **fields):
    logits = logits.clone().requires_grad_(True)
    before = logits.detach().clone()
    values = token_logprobs(logits, targets, vocab_size=VOCAB, **fields)
    (values * weights).sum().backward()
    torch.testing.assert_close(values.detach(), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits.grad, want_grad, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("width", [VOCAB, 12, 16])
def test_logprobs_equal_log_softmax_of_the_real_vocabulary(width, temperature):
    want, grad = expected(width, temperature)
    check(*case(width), want, grad, temperature=temperature)
    assert (grad[:, VOCAB:] == 0).all()


def test_logprobs_of_bfloat16_logits_are_computed_in_float32():
    logits, targets, _ = case()
    logits = logits.bfloat16()
    values = token_logprobs(logits, targets, vocab_size=VOCAB)
    assert values.dtype == torch.float32
    want = torch.log_softmax(logits.float(), -1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(values, want)


def test_logprobs_of_no_tokens():
    values = token_logprobs(
        torch.zeros(0, VOCAB), torch.zeros(0, dtype=torch.int64), vocab_size=VOCAB
    )
    assert values.shape == (0,)


def test_logprobs_stay_finite_for_extreme_logits():
    logits = torch.tensor([[3e4, -3e4, 0.0]])
    values = token_logprobs(logits, torch.tensor([1]), vocab_size=3)
    assert values.item() == pytest.approx(-6e4)


def test_mask_padding():
    logits = torch.arange(6.0).reshape(2, 3)
    lowest = torch.finfo(torch.float32).min
    assert mask_padding(logits, 2).tolist() == [[0.0, 1.0, lowest], [3.0, 4.0, lowest]]
    assert mask_padding(logits, 3) is logits
    assert mask_padding(logits, 99) is logits
    assert (mask_padding(logits, 0) == lowest).all()
    assert (mask_padding(logits, -4) == lowest).all()
    assert torch.equal(logits, torch.arange(6.0).reshape(2, 3))


def expected_entropy(width: int = VOCAB, temperature: float = 1.0):
    """Values and gradient of the weighted sum, by plain torch in fp64."""
    logits, _, weights = case(width)
    logits = logits.double().requires_grad_(True)
    logprobs = torch.log_softmax(logits[:, :VOCAB] / temperature, -1)
    values = -(logprobs.exp() * logprobs).sum(-1)
    (values * weights).sum().backward()
    return values.detach().float(), logits.grad.float()


def check_entropy(logits, weights, want, want_grad, **fields):
    logits = logits.clone().requires_grad_(True)
    before = logits.detach().clone()
    values = token_entropy(logits, vocab_size=VOCAB, **fields)
    (values * weights).sum().backward()
    torch.testing.assert_close(values.detach(), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits.grad, want_grad, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("width", [VOCAB, 16])
def test_entropy_is_that_of_the_real_vocabulary(width, temperature):
    logits, _, weights = case(width)
    want, grad = expected_entropy(width, temperature)
    check_entropy(logits, weights, want, grad, temperature=temperature)


def test_entropy_of_even_certain_and_no_distributions():
    logits = torch.tensor([[2.0, 2.0, 2.0, 2.0], [3e4, -3e4, 0.0, 0.0]])
    values = token_entropy(logits.bfloat16(), vocab_size=4)
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx([log(4), 0.0])
    assert token_entropy(torch.zeros(0, 4), vocab_size=4).shape == (0,)


def check_likeliest(shard, rank, width, temperature, **fields):
    """Ids, log-probs and the gradient of K tokens per row, against the whole."""
    logits, _, _ = case(width)
    whole = logits[:, :VOCAB].double().requires_grad_(True)
    want = torch.log_softmax(whole / temperature, -1).topk(4, dim=-1)
    settings = {"vocab_size": VOCAB, "temperature": temperature, **fields}
    ids, values = likeliest_tokens(shard, 4, **settings)
    assert torch.equal(ids, want.indices)
    torch.testing.assert_close(values, want.values.detach().float())
    weights = torch.arange(4.0)
    (want.values * weights).sum().backward()
    shard = shard.clone().requires_grad_(True)
    (token_logprobs(shard, ids, **settings) * weights).sum().backward()
    full = torch.zeros(TOKENS, width).index_copy(
        1, torch.arange(VOCAB), whole.grad.float()
    )
    part = full.split(shard.shape[-1], dim=-1)[rank]
    torch.testing.assert_close(shard.grad, part, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [VOCAB, 16])
def test_the_likeliest_tokens_of_an_undivided_vocabulary(width):
    check_likeliest(case(width)[0], 0, width, 0.7)


def test_more_tokens_than_there_are_is_all_of_them():
    ids, values = likeliest_tokens(case(16)[0], 99, vocab_size=VOCAB)
    assert ids.sort(-1).values.tolist() == [list(range(VOCAB))] * TOKENS
    torch.testing.assert_close(values.exp().sum(-1), torch.ones(TOKENS))


def _sharded(rank, width, temperature):
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", init_method=rank.init_method, rank=rank.rank, world_size=rank.world_size
    )
    logits, targets, weights = case(width)
    shard = logits.chunk(rank.world_size, dim=-1)[rank.rank]
    want, grad = expected(width, temperature)
    shard_grad = grad.chunk(rank.world_size, dim=-1)[rank.rank]
    check(
        shard,
        targets,
        weights,
        want,
        shard_grad,
        temperature=temperature,
        tp_group=dist.group.WORLD,
    )
    want, grad = expected_entropy(width, temperature)
    shard_grad = grad.chunk(rank.world_size, dim=-1)[rank.rank]
    fields = {"temperature": temperature, "tp_group": dist.group.WORLD}
    check_entropy(shard, weights, want, shard_grad, **fields)
    check_likeliest(shard, rank.rank, width, temperature, tp_group=dist.group.WORLD)
    return shard.shape[-1]


@pytest.mark.parametrize(
    ("world", "width", "temperature"),
    [
        (2, 12, 1.0),  # one padding column on the second rank
        (2, 12, 0.7),
        (2, 22, 1.0),  # the second rank holds nothing but padding
        (3, 15, 1.0),  # the boundary lies within the third rank
    ],
)
def test_logprobs_over_ranks_equal_the_whole(world, width, temperature):
    """Values and gradients, each rank against its part of the undivided result."""
    assert run_ranks(_sharded, world, width, temperature) == [width // world] * world
