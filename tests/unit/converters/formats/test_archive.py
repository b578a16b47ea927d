"""Archives of one tensor, taken apart and put together, as torch reads and writes."""

from __future__ import annotations

import io

import pytest
import torch

from nemo_rl.converters.formats.archive import (
    NOTHING,
    envelope,
    enveloped,
    raw,
    saved,
    saved_tensor,
)
from nemo_rl.converters.formats.mapped import MappedFile


@pytest.mark.parametrize("shape", [(3,), (1, 1, 5, 7), (2, 3000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_envelope_and_bytes_are_what_torch_loads(shape, dtype):
    tensor = torch.randn(shape).to(dtype)
    around = envelope(shape, dtype)
    content = around.head + bytes(raw(tensor)) + around.tail
    assert torch.equal(torch.load(io.BytesIO(content), weights_only=True), tensor)
    assert len(around.head) % 64 == 0 and len(content) == around.size + tensor.nbytes


def test_raw_bytes_are_those_of_the_elements_in_order():
    tensor = torch.arange(6, dtype=torch.int16).reshape(2, 3).t()
    assert bytes(raw(tensor)) == bytes([0, 0, 3, 0, 1, 0, 4, 0, 2, 0, 5, 0])
    assert torch.load(io.BytesIO(NOTHING), weights_only=True) == [None]


def stored(tmp_path, content):
    (tmp_path / "file").write_bytes(b"123" + content + b"more")
    return MappedFile(tmp_path / "file"), 3, len(content)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(4, 6),
        torch.randn(4, 6).t(),
        torch.randn(8, 6)[2:5, 1:],
        torch.randn(3).bfloat16(),
        torch.tensor(2.0),
    ],
    ids=["plain", "transposed", "view", "bfloat16", "scalar"],
)
def test_whatever_torch_saved_is_read(tmp_path, tensor):
    found = saved_tensor(*stored(tmp_path, saved(tensor)))
    assert torch.equal(found, tensor) and found.dtype == tensor.dtype


def test_an_envelope_made_here_is_known_again_and_no_other(tmp_path):
    tensor = torch.randn(2, 30)
    around = envelope((2, 30), torch.float32)
    content = around.head + bytes(raw(tensor)) + around.tail
    place = stored(tmp_path, content)
    assert torch.equal(enveloped(*place, (2, 30), torch.float32), tensor)
    assert enveloped(*place, (3, 20), torch.float32) is None
    assert enveloped(*place, (2, 60), torch.bfloat16) is None
    changed = bytearray(content)
    changed[100] ^= 1
    assert enveloped(*stored(tmp_path, changed), (2, 30), torch.float32) is None


def test_what_is_no_archive_of_a_tensor_says_so(tmp_path):
    whole = saved(torch.ones(100))
    legacy = io.BytesIO()
    torch.save(torch.ones(3), legacy, _use_new_zipfile_serialization=False)
    for content in (b"", b"junk", whole[:-30], whole[500:], legacy.getvalue()):
        with pytest.raises(ValueError):
            saved_tensor(*stored(tmp_path, content))
    for value in ({"a": 1}, [torch.ones(1), torch.ones(1)]):
        with pytest.raises(ValueError, match="no single tensor"):
            saved_tensor(*stored(tmp_path, saved(value)))
    file, start, length = stored(tmp_path, whole)
    with pytest.raises(ValueError, match="the file ends at byte"):
        saved_tensor(file, start, length + 100)
