"""Transforms and shards: exact inverses, and the interleaving written out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from nemo_rl.converters.transforms import (
    COLUMN,
    COLUMN_GATED,
    REPLICATED,
    ROW,
    Identity,
    MergeGateUp,
    MergeQkv,
    PadVocabulary,
    Shard,
    pad_rows,
)


def spec(heads=4, kv_heads=2, head_dim=3, vocab=7):
    return SimpleNamespace(
        num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, vocab_size=vocab
    )


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_qkv_interleaves_per_group():
    """4 heads, 2 groups, 1 channel: q0 q1 k0 v0, then q2 q3 k1 v1."""
    query = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    key = torch.tensor([[10.0], [11.0]])
    value = torch.tensor([[20.0], [21.0]])
    shape = spec(heads=4, kv_heads=2, head_dim=1)
    merged = MergeQkv().merge([query, key, value], shape)
    assert merged[:, 0].tolist() == [0, 1, 10, 20, 2, 3, 11, 21]


def test_qkv_keeps_the_channels_of_a_head_together():
    """2 heads, 1 group, 2 channels, with the bias as a vector."""
    query = torch.tensor([0.0, 0.5, 1.0, 1.5])
    key = torch.tensor([10.0, 10.5])
    value = torch.tensor([20.0, 20.5])
    shape = spec(heads=2, kv_heads=1, head_dim=2)
    merged = MergeQkv().merge([query, key, value], shape)
    assert merged.tolist() == [0, 0.5, 1, 1.5, 10, 10.5, 20, 20.5]


@pytest.mark.parametrize("rest", [(), (5,)], ids=["bias", "weight"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1), (9, 3)])
def test_qkv_split_inverts_merge(heads, kv_heads, rest):
    shape = spec(heads=heads, kv_heads=kv_heads)
    parts = [random(n * 3, *rest) + n for n in (heads, kv_heads, kv_heads)]
    merged = MergeQkv().merge(parts, shape)
    assert merged.shape == ((heads + 2 * kv_heads) * 3, *rest)
    for got, want in zip(MergeQkv().split(merged, shape), parts, strict=True):
        assert torch.equal(got, want)


def test_qkv_shards_of_two_ranks_hold_whole_groups():
    """Rank 0 of 2 holds exactly what merging its own heads gives."""
    shape = spec(heads=4, kv_heads=2)
    query, key, value = random(12, 5), random(6, 5) + 1, random(6, 5) + 2
    merged = MergeQkv().merge([query, key, value], shape)
    half = spec(heads=2, kv_heads=1)
    for rank in range(2):
        own = [part.chunk(2)[rank] for part in (query, key, value)]
        want = MergeQkv().merge(own, half)
        assert torch.equal(COLUMN.shard(merged, rank, 2), want)


def test_gate_up_order_and_inverse():
    gate, up = random(4, 3), random(4, 3) + 9
    merged = MergeGateUp().merge([gate, up], spec())
    assert torch.equal(merged[:4], gate)
    assert torch.equal(merged[4:], up)
    got = MergeGateUp().split(merged, spec())
    assert torch.equal(got[0], gate)
    assert torch.equal(got[1], up)


def test_identity_and_vocabulary_are_exact():
    weight = random(7, 3)
    assert Identity().merge([weight], spec()) is weight
    assert Identity().split(weight, spec()) == [weight]
    merged = PadVocabulary().merge([weight], spec())
    padded = pad_rows(merged, 8)
    assert padded.shape == (8, 3)
    assert (padded[7] == 0).all()
    (back,) = PadVocabulary().split(padded, spec())
    assert torch.equal(back, weight)


def test_pad_rows_keeps_the_type_and_leaves_a_full_tensor_alone():
    weight = random(4, 3).bfloat16()
    assert pad_rows(weight, 4) is weight
    assert pad_rows(weight, 6).dtype == torch.bfloat16
    assert pad_rows(torch.ones(3), 5).tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize(
    "shard", [REPLICATED, COLUMN, ROW, COLUMN_GATED], ids=["all", "col", "row", "gated"]
)
def test_unshard_inverts_shard(shard, size):
    full = random(16, 8)
    parts = [shard.shard(full, rank, size) for rank in range(size)]
    assert torch.equal(shard.unshard(parts), full)
    if shard.dim is None:
        assert all(part is full for part in parts)
    else:
        assert parts[0].shape[shard.dim] == full.shape[shard.dim] // size


def test_column_and_row_shards_by_hand():
    full = torch.arange(8).reshape(4, 2)
    assert COLUMN.shard(full, 1, 2).tolist() == [[4, 5], [6, 7]]
    assert ROW.shard(full, 1, 2).tolist() == [[1], [3], [5], [7]]
    assert COLUMN.shard(torch.arange(4), 0, 2).tolist() == [0, 1]


def test_gated_shard_takes_its_part_of_gate_and_of_up():
    merged = torch.tensor([0, 1, 2, 3, 10, 11, 12, 13])[:, None]
    assert COLUMN_GATED.shard(merged, 0, 2)[:, 0].tolist() == [0, 1, 10, 11]
    assert COLUMN_GATED.shard(merged, 1, 2)[:, 0].tolist() == [2, 3, 12, 13]


def test_unshard_keeps_rank_order_for_any_number_of_blocks():
    shard = Shard(1, blocks=3)
    full = torch.arange(24).reshape(2, 12)
    parts = [shard.shard(full, rank, 2) for rank in range(2)]
    assert parts[0][0].tolist() == [0, 1, 4, 5, 8, 9]
    assert torch.equal(shard.unshard(parts), full)
