"""Distributed checkpoints in pieces and files; torch reads them."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.converters.formats.dist_checkpoint import DistCheckpoint
from nemo_rl.converters.formats.dist_writer import DistCheckpointWriter


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


def test_torch_reads_what_is_written(folder):
    from torch.distributed.checkpoint import FileSystemReader, load

    state = {"embedding": torch.zeros(7, 3), "norm": torch.zeros(2, 3)}
    load(state, storage_reader=FileSystemReader(folder), no_dist=True)
    assert torch.equal(state["embedding"], tensor(0, 7, 3))
    assert torch.equal(state["norm"][1], tensor(2, 3))


def test_chunks_of_several_files_are_joined(tmp_path):
    """As tensor-parallel ranks write them: two halves of each layer."""
    full = tensor(0, 2, 4, 3)
    writer = DistCheckpointWriter(tmp_path)
    for layer in (0, 1):
        for rank in (0, 1):
            part = full[layer : layer + 1, 2 * rank : 2 * rank + 2]
            offsets, file = (layer, 2 * rank, 0), f"__{rank}_0.distcp"
            writer.add_chunk("w", part, offsets, (2, 4, 3), file)
    writer.finish({})
    checkpoint = DistCheckpoint(tmp_path)
    assert torch.equal(checkpoint.read("w", (1,)), full[1])
    assert torch.equal(checkpoint.read("w"), full)
    assert checkpoint.grid("w") == (2, 2, 1)
    assert len(list(tmp_path.glob("*.distcp"))) == 2


def test_entries_are_copied_as_they_lie(folder, tmp_path):
    source, copy = DistCheckpoint(folder), tmp_path / "copy"
    copy.mkdir()
    writer = DistCheckpointWriter(copy)
    (empty,) = source.objects
    for key in ("norm", empty):
        writer.copy(source, key)
    writer.finish({})
    result = DistCheckpoint(copy)
    assert torch.equal(result.read("norm"), source.read("norm"))
    assert dict(result.stored(empty)) == dict(source.stored(empty))


def test_a_second_name_takes_no_room(tmp_path):
    writer = DistCheckpointWriter(tmp_path)
    writer.add("embedding", tensor(0, 70, 30))
    writer.add_again("output", "embedding")
    writer.finish_index()
    assert torch.equal(DistCheckpoint(tmp_path).read("output"), tensor(0, 70, 30))
    assert (tmp_path / "__0_0.distcp").stat().st_size < 2 * 70 * 30 * 4


def test_layers_must_agree(tmp_path):
    writer = DistCheckpointWriter(tmp_path)
    writer.add("norm", tensor(0, 3), index=(0,), stack=(2,))
    with pytest.raises(ValueError, match="norm changes its shape"):
        writer.add("norm", tensor(0, 4), index=(1,), stack=(2,))
    writer.close()
