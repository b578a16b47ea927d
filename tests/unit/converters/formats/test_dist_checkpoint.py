"""Distributed checkpoints on disk: what is written is read, what is damaged is named.

That megatron-core reads them too is tests/functional/test_convert.py.
"""

from __future__ import annotations

import os

import pytest
import torch

from nemo_rl.converters.formats.dist_checkpoint import DistCheckpoint
from nemo_rl.converters.formats.dist_writer import DistCheckpointWriter
from nemo_rl.utils.exceptions import CheckpointError


def tensor(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "checkpoint"
    path.mkdir()
    writer = DistCheckpointWriter(path)
    writer.add("embedding", tensor(0, 7, 3))
    for layer in (1, 0):
        writer.add("norm", tensor(1 + layer, 3), index=(layer,), stack=(2,))
    writer.add_nothing("linear._extra_state/shard_0_2")
    writer.add("half", tensor(5, 4).bfloat16())
    writer.finish({"updates": 3})
    return path


def test_tensors_and_layers_come_back(folder):
    checkpoint = DistCheckpoint(folder)
    shapes = {key: t.shape for key, t in checkpoint.tensors.items()}
    assert shapes == {"embedding": (7, 3), "norm": (2, 3), "half": (4,)}
    assert checkpoint.tensors["half"].nbytes == 8
    assert torch.equal(checkpoint.read("embedding"), tensor(0, 7, 3))
    assert torch.equal(checkpoint.read("norm", (0,)), tensor(1, 3))
    assert torch.equal(checkpoint.read("norm", (1,)), tensor(2, 3))
    assert torch.equal(
        checkpoint.read("norm"), torch.stack([tensor(1, 3), tensor(2, 3)])
    )
    assert checkpoint.read("half").dtype is torch.bfloat16
    assert torch.load(folder / "common.pt", weights_only=True) == {"updates": 3}


def test_chunks_that_overlap_are_refused(tmp_path):
    """As many elements as expected, but some of them twice and others never."""
    writer = DistCheckpointWriter(tmp_path)
    for start in (0, 1):
        writer.add_chunk("w", torch.ones(1, 2, 3), (0, start, 0), (1, 4, 3))
    writer.finish({})
    with pytest.raises(CheckpointError, match=r"w at \[0, 0, 0\] and \[0, 1, 0\] over"):
        DistCheckpoint(tmp_path).read("w")


def test_a_cut_file_names_the_tensor(folder):
    os.truncate(folder / "__0_0.distcp", 900)
    with pytest.raises(CheckpointError, match="cannot read .* of half.*cut or damaged"):
        DistCheckpoint(folder).read("half")


def test_a_missing_file_names_the_tensor(folder):
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(CheckpointError, match="cannot read .* of norm"):
        DistCheckpoint(folder).read("norm", (1,))


def test_a_missing_layer_is_counted(tmp_path):
    writer = DistCheckpointWriter(tmp_path)
    writer.add("norm", tensor(0, 3), index=(0,), stack=(2,))
    writer.finish({})
    with pytest.raises(CheckpointError, match="norm hold 0 elements, expected 3"):
        DistCheckpoint(tmp_path).read("norm", (1,))
