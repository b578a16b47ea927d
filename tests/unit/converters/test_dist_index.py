"""The index of a distributed checkpoint: read, or refused without running anything."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from nemo_rl.converters.dist_index import INDEX, read_index
from nemo_rl.utils.exceptions import CheckpointError


def test_paths_of_the_machine_that_wrote_it_are_read(tmp_path):
    meta = StorageMeta(checkpoint_id=Path("somewhere"))
    index = Metadata({}, storage_data={}, storage_meta=meta)
    (tmp_path / INDEX).write_bytes(pickle.dumps(index))
    assert str(read_index(tmp_path).storage_meta.checkpoint_id) == "somewhere"


def test_an_index_that_asks_for_more_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    (tmp_path / INDEX).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(
        CheckpointError, match="not a readable index: it asks for posix"
    ):
        read_index(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no .metadata"),
        (b"", "not a readable index"),
        (b"\x80\x04garbage", "index|damaged"),
        (pickle.dumps({"a": 1}), "holds dict, not an index"),
        (pickle.dumps(torch.float32), "holds dtype, not an index"),
    ],
)
def test_what_is_no_index_says_so(tmp_path, content, message):
    if content is not None:
        (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_index(tmp_path)
