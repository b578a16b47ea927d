"""A tensor's digest: additive over slices, and different for every changed bit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from nemo_rl.backends.refit import digest
from nemo_rl.backends.refit.digest import (
    MODULUS,
    DigestObserver,
    sent_digests,
    tensor_digest,
)

DTYPES = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    *(torch.int64, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn),
)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=draw)).to(dtype)


def splitmix(index: int, seed: int) -> int:
    z = ((index + 1) * 0x9E3779B97F4A7C15 + seed) % MODULUS
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % MODULUS
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % MODULUS
    return (z ^ (z >> 31)) | 1


def reference(tensor: torch.Tensor) -> int:
    """Python's integers and the definition, one element after the other."""
    width = tensor.shape[-1] if tensor.dim() else 1
    data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    size = min(tensor.element_size(), 4)
    words = np.frombuffer(data, dtype=f"<i{size}").reshape(-1, width * _words(tensor))
    total = 0
    for row, column in itertools.product(*map(range, words.shape)):
        a, b = splitmix(row, digest._ROW_SEED), splitmix(column, digest._COLUMN_SEED)
        total += (int(words[row, column]) + 1) * a * b
    return total % MODULUS


def _words(tensor: torch.Tensor) -> int:
    return 2 if tensor.element_size() == 8 else 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (6,), (2, 3, 4), (1, 1)], ids=str)
def test_it_is_what_is_defined(dtype, shape):
    tensor = random(*shape, dtype=dtype)
    assert tensor_digest(tensor) == reference(tensor)


def test_it_does_not_depend_on_the_size_of_its_steps(monkeypatch):
    tensors = [random(9, 11), random(9, 11, dtype=torch.float64), random(50)]
    whole = [tensor_digest(tensor) for tensor in tensors]
    for step in (1, 4, 16, 40):
        monkeypatch.setattr(digest, "_CHUNK", {"cpu": step, "other": step})
        assert [tensor_digest(tensor) for tensor in tensors] == whole


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_digests_of_slices_add_up(dim, dtype):
    tensor = random(6, 10, 8, dtype=dtype)
    for cuts in ([2, 4], [1, 1, 4], [6]):
        sizes = [tensor.shape[dim] * cut // 6 for cut in cuts]
        sizes[-1] = tensor.shape[dim] - sum(sizes[:-1])
        total, begin = 0, 0
        for part in tensor.split(sizes, dim=dim):
            offset = [0, 0, 0]
            offset[dim] = begin
            # The part is no copy: its rows lie at the distances of the whole.
            total += tensor_digest(part, offset=offset, full_shape=tensor.shape)
            begin += part.shape[dim]
        assert total % MODULUS == tensor_digest(tensor)


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(torch.float32, torch.int32), (torch.bfloat16, torch.int16)],
    ids=str,
)
def test_every_flipped_bit_changes_it(dtype, bits):
    tensor = random(4, 6, dtype=dtype)
    before = tensor_digest(tensor)
    width = 8 * tensor.element_size()
    one = torch.ones((), dtype=torch.int64)
    for bit, row, column in itertools.product(range(width), (0, 3), (0, 5)):
        changed = tensor.clone()
        mask = (one << bit).to(torch.int32 if width == 32 else torch.int16)
        if bit == width - 1:
            mask = torch.tensor(-(1 << bit), dtype=bits)
        changed.view(bits)[row, column] ^= mask
        assert tensor_digest(changed) != before, (bit, row, column)


def test_what_is_in_another_place_changes_it():
    tensor = random(40, 30)
    found = {tensor_digest(tensor)}
    draw = torch.Generator().manual_seed(1)
    for _ in range(300):
        a, b = torch.randint(tensor.numel(), (2,), generator=draw).tolist()
        changed = tensor.clone().view(-1)
        changed[[a, b]] = changed[[b, a]]
        found |= {tensor_digest(changed.view(40, 30))} if a != b else set()
        # Two flipped signs are the changes that are easiest to cancel.
        changed = tensor.clone().view(-1)
        changed[[a, b]] *= -1
        found |= {tensor_digest(changed.view(40, 30))} if a != b else set()
    rows, columns = tensor.clone(), tensor.clone()
    rows[[3, 9]] = rows[[9, 3]]
    columns[:, [0, 1]] = columns[:, [1, 0]]
    others = [rows, columns, tensor.T, tensor.view(30, 40), tensor.flip(0)]
    values = [tensor_digest(other) for other in others]
    assert len(found) > 590 and len({*found, *values}) == len(found) + len(values)


def test_a_slice_at_another_place_has_another_digest():
    tensor = random(8, 6)
    places = [
        tensor_digest(tensor[:4], offset=(row, 0), full_shape=(8, 6))
        for row in range(5)
    ]
    assert len(set(places)) == 5


def test_zeros_nans_and_nothing():
    zeros = torch.zeros(3, 4)
    assert tensor_digest(zeros) != tensor_digest(-zeros)
    assert tensor_digest(zeros) != tensor_digest(torch.zeros(3, 3)) != 0
    nans = torch.tensor([0x7FC00000, 0x7FC00001, -0x400000], dtype=torch.int32)
    assert len({tensor_digest(nan.view(torch.float32)) for nan in nans}) == 3
    assert tensor_digest(torch.empty(0)) == tensor_digest(torch.empty(4, 0)) == 0
    assert tensor_digest(torch.tensor(1.5)) == tensor_digest(torch.tensor([1.5]))


def test_strides_do_not_matter():
    tensor = random(12, 10)
    assert tensor_digest(tensor.T) == tensor_digest(tensor.T.contiguous())
    assert tensor_digest(tensor[::2, 1::3]) == tensor_digest(tensor[::2, 1::3].clone())
    cube = random(4, 6, 8)[:, ::2, :5]
    assert tensor_digest(cube) == tensor_digest(cube.contiguous())


def test_a_slice_outside_is_refused():
    with pytest.raises(ValueError, match=r"slice \[2, 3\] at \[3, 0\] does not lie"):
        tensor_digest(random(2, 3), offset=(3, 0), full_shape=(4, 3))
    with pytest.raises(ValueError, match="does not lie"):
        tensor_digest(random(2), offset=(0, 0), full_shape=(4, 3))
    with pytest.raises(ValueError, match="no digest of torch.complex64"):
        tensor_digest(torch.zeros(2, dtype=torch.complex64))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_agrees():
    for dtype in DTYPES:
        tensor = random(300, 70, dtype=dtype)
        assert tensor_digest(tensor.cuda()) == tensor_digest(tensor)


def test_an_observer_knows_vectors_in_the_dtype_they_may_be_rounded_to():
    observer = DigestObserver()
    norm, matrix = random(8), random(8, 8)
    observer("norm", norm)
    observer("matrix", matrix)
    found = observer.report()
    assert found == {"norm": sent_digests(norm), "matrix": sent_digests(matrix)}
    assert list(found["matrix"]) == ["float32"]
    assert found["norm"]["bfloat16"] == tensor_digest(norm.bfloat16())
    assert found["norm"]["float16"] == tensor_digest(norm, dtype=torch.float16)
