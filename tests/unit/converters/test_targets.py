"""Planned results: every byte has one place, and merging rows needs no memory."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.converters import targets
from nemo_rl.converters.bridge import weights_of
from nemo_rl.converters.conversion import Conversion, Request
from nemo_rl.converters.convert import convert
from nemo_rl.converters.formats.archive import raw
from nemo_rl.converters.transforms import Identity
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "qwen2"
    return models.save(folder, "qwen2", tied=False, layers=2, hidden=32)


@pytest.mark.parametrize("way", ["to", "back"])
@pytest.mark.parametrize("shard_bytes", [1, 30_000, 1 << 30])
def test_places_do_not_overlap_and_fill_the_files(source, tmp_path, way, shard_bytes):
    if way == "back":
        source = convert(source, tmp_path / "megatron")
    conversion = Conversion(Request(source, shard_bytes=shard_bytes))
    pieces = list(conversion.target.fixed())
    for number, (weight, _) in enumerate(conversion.plan):
        parts = conversion.side.parts(weight)
        pieces += conversion.target.pieces(number, parts)
    ends = dict.fromkeys(conversion.target.files, 0)
    for piece in sorted(pieces):
        assert 0 <= piece.start - ends[piece.file] < 64
        ends[piece.file] = piece.start + sum(len(data) for data in piece.data)
    assert ends == conversion.target.files
    assert (len(ends) > 2) == (shard_bytes < 1 << 30)


def test_merged_rows_are_what_the_merge_makes(source):
    conversion = Conversion(Request(source))
    for weight, _ in conversion.plan:
        parts = conversion.side.parts(weight)
        rows = targets.merged(weight, parts, conversion.spec)
        found = b"".join(bytes(raw(part)) for part in rows)
        whole = weight.rule.transform.merge(parts, conversion.spec)
        assert found == bytes(raw(whole)), weight.key
        starts = {part.untyped_storage().data_ptr() for part in parts}
        assert {part.untyped_storage().data_ptr() for part in rows} <= starts


def test_a_merge_that_moves_columns_is_done_in_memory(source):
    class Transpose(Identity):
        def merge(self, parts, spec):
            return parts[0].t().contiguous()

    conversion = Conversion(Request(source))
    weight = conversion.plan[0][0]
    object.__setattr__(weight.rule, "transform", Transpose())
    square = torch.arange(4.0).reshape(2, 2)
    (found,) = targets.merged(weight, [square], conversion.spec)
    assert found.tolist() == [[0, 2], [1, 3]]


def test_layers_that_do_not_fill_a_tensor_are_listed(source):
    conversion = Conversion(Request(source))
    plan = [item for item in conversion.plan if item[0].index != (1,)]
    with pytest.raises(ConfigurationError, match="do not fill .* of .* elements"):
        targets.MegatronTarget(conversion.spec, plan, 1 << 30, source)
    with pytest.raises(
        ConfigurationError, match="two weights are made of model.layers.0"
    ):
        targets.HfTarget(conversion.spec, plan + plan[-1:], 1 << 30, source)
    assert len(weights_of(conversion.spec)) == len(conversion.plan)


def test_a_piece_of_many_parts_is_written_whole(tmp_path):
    parts = [bytes([n % 256]) * (n % 5) for n in range(2000)]
    with open(tmp_path / "file", "wb") as file:
        targets.write_piece(file.fileno(), targets.Piece("file", 10, parts))
    assert (tmp_path / "file").read_bytes() == bytes(10) + b"".join(parts)
