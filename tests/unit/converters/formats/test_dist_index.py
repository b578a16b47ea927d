"""The index of a checkpoint: built without mistakes, read without running it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    Metadata,
    StorageMeta,
)

from nemo_rl.converters.formats.dist_index import INDEX, IndexBuilder, read_index
from nemo_rl.utils.exceptions import CheckpointError

PLACE = ("__0_0.distcp", 0, 100)


def test_what_is_built_is_read(tmp_path):
    builder = IndexBuilder()
    builder.add("w", (3,), torch.float32, ((1,), (2,)), PLACE)
    assert builder.missing() == ["w (3 of 6 elements)"]
    builder.add("w", (3,), torch.float32, ((0,), (2,)), PLACE)
    builder.add_nothing("x", PLACE)
    assert builder.missing() == []
    builder.write(tmp_path, {"iteration": 3})
    index = read_index(tmp_path)
    assert index.state_dict_metadata["w"].size == torch.Size((2, 3))
    assert len(index.storage_data) == 3


def test_parts_of_one_tensor_agree_and_come_once():
    builder = IndexBuilder()
    builder.add("w", (3,), torch.float32, ((0,), (2,)), PLACE)
    with pytest.raises(ValueError, match="w changes its shape"):
        builder.add("w", (4,), torch.float32, ((1,), (2,)), PLACE)
    with pytest.raises(ValueError, match="w changes its shape or dtype"):
        builder.add("w", (3,), torch.bfloat16, ((1,), (2,)), PLACE)
    with pytest.raises(ValueError, match="w at .* comes twice"):
        builder.add("w", (3,), torch.float32, ((0,), (2,)), PLACE)


def test_pieces_are_named_again_and_taken_over(tmp_path):
    builder = IndexBuilder()
    boxes = [((0, 0), (2, 3)), ((2, 0), (1, 3))]
    for box in boxes:
        builder.add_chunk("w", (3, 3), torch.float32, box, PLACE)
    builder.add_again("again", "w")
    builder.write_index(tmp_path, {"w": ("model", "w")})
    index = read_index(tmp_path)
    assert index.planner_data == {"w": ("model", "w")}
    assert len(index.storage_data) == 4
    other = IndexBuilder()
    places = {i: ("x", 0, 1) for i in index.storage_data if i.fqn == "w"}
    other.copy(index.state_dict_metadata["w"], places)
    assert other.missing() == []
    with pytest.raises(ValueError, match="comes twice"):
        other.copy(index.state_dict_metadata["w"], places)


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
    ],
)
def test_what_is_no_index_says_so(tmp_path, content, message):
    if content is not None:
        (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_index(tmp_path)


class Attribute:
    """Written as ``getattr(owner, name)``, as Python before 3.11.4 writes an Enum."""

    def __init__(self, owner: object, name: str) -> None:
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


def test_a_member_of_an_enum_may_be_written_as_an_attribute(tmp_path):
    member = next(iter(_MEM_FORMAT_ENCODING))
    content = {"member": Attribute(_MEM_FORMAT_ENCODING, member.name)}
    (tmp_path / INDEX).write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="holds dict, not an index"):
        read_index(tmp_path)


def test_an_attribute_of_anything_else_is_refused(tmp_path):
    content = Attribute(Metadata, "__init__")
    (tmp_path / INDEX).write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="asks for an attribute __init__"):
        read_index(tmp_path)
