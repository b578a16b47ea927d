"""Mapped files: views of what is on the disk, and the memory they take."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.converters.cli.report import resident
from nemo_rl.converters.formats.mapped import MappedFile


def test_a_tensor_is_a_view_that_leaves_the_file_alone(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc" + torch.arange(6, dtype=torch.float32).numpy().tobytes())
    file = MappedFile(path)
    tensor = file.tensor(3, (2, 3), torch.float32)
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]
    tensor.zero_()
    assert file.bytes(3, 24) != path.read_bytes()[3:] != bytes(24)
    assert file.bytes(0, 100)[:3] == b"abc" and len(file.bytes(0, 100)) == 27


def test_a_file_that_ends_too_early_is_an_error(tmp_path):
    for content in (b"", b"1234567"):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ValueError, match="ends before"):
            MappedFile(tmp_path / "file").tensor(0, (2,), torch.float32)
    assert MappedFile(tmp_path / "file").tensor(9, (0, 3), torch.float32).numel() == 0


def test_released_pages_are_no_memory_and_come_again(tmp_path):
    size = 64 << 20
    (tmp_path / "file").write_bytes(b"\x01" * size)
    file = MappedFile(tmp_path / "file")
    before = resident()
    tensor = file.tensor(0, (size,), torch.uint8)
    assert int(tensor.sum()) == size
    assert resident() - before > size // 2
    file.release(5, size - 5)
    assert resident() - before < size // 4
    assert int(tensor[::4096].sum()) == size // 4096
