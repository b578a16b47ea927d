"""Buckets: what was packed comes out, and anything else is noticed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nemo_rl.backends.refit.base import RefitLink, TensorSpec
from nemo_rl.backends.refit.buckets import (
    ALIGN,
    SMALL,
    BufferPool,
    layout,
    pack,
    unpack,
    usual_bytes,
)
from nemo_rl.utils.exceptions import RefitError
from tests.fakes.refit_processes import specs_of, tensors_of

KIB = 1 << 10


def link_of(*stages, **fields):
    return RefitLink(
        **{
            "transport": "gloo",
            "stages": tuple(map(tuple, stages)),
            "num_receivers": 1,
            "host": "127.0.0.1",
            "port": 1,
            "group": "g.0",
            "bucket_bytes": 16 * KIB,
            **fields,
        }
    )


def packed(link, stage=0, **options):
    """(bucket, its memory) of a stage's random tensors."""
    tensors = tensors_of(link.stages[stage])
    for bucket in layout(link, stage):
        buffer = torch.empty(bucket.nbytes, dtype=torch.uint8)
        pack(bucket, buffer, tensors, **options)
        yield bucket, buffer


ODD = (
    TensorSpec("scalar", "bfloat16", ()),
    TensorSpec("nothing", "float32", (0, 7)),
    TensorSpec("large", "float32", (100, 100)),
    TensorSpec("last", "int8", (3,)),
)


def test_tensors_of_all_types_come_out_as_they_were():
    specs = (*specs_of(30), *ODD)
    link = link_of(specs)
    found = [pair for b, memory in packed(link) for pair in unpack(b, memory)]
    want = list(tensors_of(specs))
    assert [name for name, _ in found] == [name for name, _ in want]
    for (name, got), (_, value) in zip(found, want, strict=True):
        assert got.dtype == value.dtype and got.shape == value.shape, name
        assert torch.equal(got, value), name


def test_buckets_are_full_but_no_larger_than_allowed():
    specs = (*specs_of(30), *ODD)
    link = link_of(specs)
    buckets = layout(link, 0)
    assert [s for b in buckets for s in b.specs] == list(specs)
    large = [b for b in buckets if b.nbytes > link.bucket_bytes]
    assert [[s.name for s in b.specs] for b in large] == [["large"]]
    for one, two in zip(buckets, buckets[1:], strict=False):
        first = -(-two.specs[0].nbytes // ALIGN) * ALIGN
        assert one.nbytes + first > link.bucket_bytes
    assert all(offset % ALIGN == 0 for b in buckets for offset in b.offsets)
    assert usual_bytes(link) == max(b.nbytes for b in buckets if b not in large)


def test_an_empty_stage_has_no_buckets():
    assert layout(link_of((), ODD), 0) == []


def test_a_tensor_that_is_not_contiguous_is_sent_right():
    spec = TensorSpec("w", "float32", (5, 3))
    value = torch.arange(15.0).view(3, 5).T
    (bucket,) = layout(link_of([spec]), 0)
    buffer = torch.empty(bucket.nbytes, dtype=torch.uint8)
    seen = []
    pack(bucket, buffer, iter([("w", value)]), observe=lambda n, t: seen.append(t))
    ((_, got),) = unpack(bucket, buffer)
    assert torch.equal(got, value) and torch.equal(seen[0], value)
    assert seen[0].is_contiguous()


def test_matrices_are_cast_and_vectors_keep_their_precision():
    given = [TensorSpec("m", "float32", (4, 4)), TensorSpec("v", "float32", (4,))]
    given.append(TensorSpec("i", "int64", (2, 2)))
    sent = [spec.cast("bfloat16") for spec in given]
    assert [spec.dtype for spec in sent] == ["bfloat16", "float32", "int64"]
    (bucket,) = layout(link_of(sent), 0)
    buffer = torch.empty(bucket.nbytes, dtype=torch.uint8)
    matrix = torch.randn(4, 4)
    values = [matrix, torch.randn(4), torch.ones(2, 2, dtype=torch.int64)]
    pairs = list(zip("mvi", values, strict=True))
    pack(bucket, buffer, iter(pairs), cast=True)
    found = dict(unpack(bucket, buffer))
    assert torch.equal(found["m"], matrix.bfloat16())
    assert torch.equal(found["v"], values[1]) and torch.equal(found["i"], values[2])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("a", torch.zeros(2)), ("x", torch.zeros(2))], "exports x"),
        ([("a", torch.zeros(2)), ("b", torch.zeros(3))], r"\[3\]\) where"),
        ([("a", torch.zeros(2)), ("b", torch.zeros(2).half())], "float16"),
        ([("a", torch.zeros(2))], "ended before b"),
    ],
)
def test_an_export_unlike_its_plan_is_refused(tensors, message):
    specs = [TensorSpec("a", "float32", (2,)), TensorSpec("b", "float32", (2,))]
    (bucket,) = layout(link_of(specs), 0)
    buffer = torch.empty(bucket.nbytes, dtype=torch.uint8)
    with pytest.raises(RefitError, match=message):
        pack(bucket, buffer, iter(tensors))


def test_another_bucket_than_the_expected_is_refused():
    alike = [TensorSpec(f"w{i}", "int8", (7 * KIB,)) for i in range(4)]
    link = link_of(alike, alike)
    (first, memory), (second, other) = packed(link)
    for bucket, buffer, message in [
        (first, other, "begins as bucket 2 of stage 0"),
        (first, memory[:-ALIGN], f"expected {len(memory)}"),
        (first, torch.zeros_like(memory), "no bucket at all"),
        (layout(link, 1)[0], memory, "begins as bucket 1 of stage 0"),
        (layout(replace(link, serial=1), 0)[0], memory, "of transfer 0"),
        (layout(replace(link, group="h.0"), 0)[0], memory, "another plan"),
    ]:
        with pytest.raises(RefitError, match=message):
            list(unpack(bucket, buffer))
    assert second.index == 1


def test_a_bucket_that_was_not_written_to_its_end_is_refused():
    (bucket, memory), *_ = packed(link_of(specs_of(30)))
    memory[-ALIGN:] = 0
    with pytest.raises(RefitError, match="ends as no bucket"):
        list(unpack(bucket, memory))


def test_memory_is_used_again_only_when_no_tensor_of_it_lives():
    pool = BufferPool(64 * KIB)
    first = pool.take(60 * KIB)
    address = first.data_ptr()
    assert address % ALIGN == 0
    part = first.view(torch.float32)[8:]
    del first
    second = pool.take(64 * KIB)
    assert second.data_ptr() != address
    del part
    third = pool.take(10 * KIB)
    assert third.data_ptr() == address
    assert pool.peak_bytes == 2 * 64 * KIB
    del second, third
    large = pool.take(100 * KIB)
    assert pool.peak_bytes == 2 * 64 * KIB, "what does not fit is given back"
    assert large.numel() == 100 * KIB


def test_a_small_tensor_does_not_keep_its_bucket():
    specs = [
        TensorSpec("small", "int8", (SMALL,)),
        TensorSpec("large", "int8", (SMALL + 1,)),
    ]
    (bucket, memory), *_ = packed(link_of(specs, bucket_bytes=1 << 20))
    found = dict(unpack(bucket, memory))
    begin, end = memory.data_ptr(), memory.data_ptr() + memory.numel()
    assert not begin <= found["small"].data_ptr() < end
    assert begin <= found["large"].data_ptr() < end
