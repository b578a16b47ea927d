"""Who writes which piece; that Megatron divides alike is tests/functional's matter."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from nemo_rl.converters.bridge import weights_of
from nemo_rl.converters.families import model_spec
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.converters.layout import (
    Layout,
    Piece,
    check_layout,
    padded_shape,
    pieces_of,
    stage_of,
)
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models


def spec_of(folder, family, **fields):
    models.save(folder, family, layers=4, hidden=32, **fields)
    return model_spec(read_hf_config(folder))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return spec_of(tmp_path_factory.mktemp("dense"), "llama")


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    return spec_of(tmp_path_factory.mktemp("experts"), "qwen3_moe")


def pieces(spec, layout, name):
    (weight,) = [w for w in weights_of(spec) if w.rule.megatron == name]
    return list(pieces_of(weight, spec, layout))


def test_every_kind_of_weight_is_divided_by_its_rule(dense):
    layout = Layout(tp=2, pp=2)
    layer = "decoder.layers.2."
    norm = pieces(dense, layout, layer + "input_layernorm.weight")
    assert norm == [Piece(2, (0,), (32,))]
    row = pieces(dense, layout, layer + "mlp.linear_fc2.weight")
    assert row == [Piece(2, (0, 0), (32, 24)), Piece(3, (0, 24), (32, 24))]
    gated = pieces(dense, layout, layer + "mlp.linear_fc1.weight")
    assert [(p.rank, p.offsets[0]) for p in gated] == [
        (2, 0),
        (2, 48),
        (3, 24),
        (3, 72),
    ]
    vocabulary = pieces(dense, layout, "embedding.word_embeddings.weight")
    assert vocabulary == [Piece(0, (0, 0), (66, 32)), Piece(1, (66, 0), (66, 32))]
    assert pieces(dense, layout, "output_layer.weight")[0].rank == 2


def test_experts_are_divided_over_the_ranks_of_a_stage(experts):
    layout = Layout(tp=2, pp=2, ep=4)
    assert (layout.stage, layout.ranks) == (4, 8)
    for expert in range(4):
        name = f"decoder.layers.3.mlp.experts.{expert}.linear_fc1.weight"
        found = pieces(experts, layout, name)
        assert [p.rank for p in found] == [4 + expert] * 2
        assert [p.sizes for p in found] == [(24, 32)] * 2
    assert Layout(tp=4, ep=2).stage == 4


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 2), (4, 4, 1), (2, 2, 4)])
def test_pieces_fill_every_weight_once_and_are_what_a_rank_holds(experts, sizes):
    layout = Layout(*sizes)
    check_layout(experts, layout)
    for weight in weights_of(experts):
        shape = padded_shape(weight, experts, layout)
        full = torch.arange(math.prod(shape)).reshape(shape)
        seen = torch.zeros(shape)
        ranks: dict[int, list] = {}
        for piece in pieces_of(weight, experts, layout):
            box = zip(piece.offsets, piece.sizes, strict=True)
            where = tuple(slice(o, o + s) for o, s in box)
            seen[where] += 1
            ranks.setdefault(piece.rank, []).append(full[where])
        assert (seen == 1).all()
        stage = stage_of(weight, experts, layout)
        assert {rank // layout.stage for rank in ranks} == {stage}
        if len(ranks) > 1:
            for rank, parts in ranks.items():
                held = weight.rule.shard.shard(full, rank % layout.stage, layout.tp)
                joined = torch.cat(parts, dim=weight.rule.shard.dim)
                assert torch.equal(joined, held)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(tp=3), "--tp 3 does not divide .* 8 attention heads and 4 key-value"),
        (Layout(tp=3), "nearest valid: 2 or 4"),
        (Layout(tp=8), "the 4 key-value heads of the model; nearest valid: 4"),
        (Layout(pp=3), "--pp 3 does not divide the 4 layers .* valid: 2 or 4"),
        (Layout(ep=3), "--ep 3 does not divide the 4 experts .* valid: 2 or 4"),
        (Layout(pp=0), "--pp 0: expected 1 or more"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(experts, layout, message):
    with pytest.raises(ConfigurationError, match=message):
        check_layout(experts, layout)


def test_what_else_does_not_divide_is_refused(dense):
    with pytest.raises(ConfigurationError, match="has no experts; leave it at 1"):
        check_layout(dense, Layout(ep=2))
    odd = dataclasses.replace(dense, ffn_hidden_size=47)
    with pytest.raises(ConfigurationError, match="47 feed-forward channels .* 1"):
        check_layout(odd, Layout(tp=2))
    (weight,) = [w for w in weights_of(odd) if w.key == "output_layer.weight"]
    wide = dataclasses.replace(weight, shape=(131, 32))
    assert len(list(pieces_of(wide, odd, Layout(tp=2)))) == 2
    fc2 = [
        w
        for w in weights_of(odd)
        if w.rule.megatron.endswith("0.mlp.linear_fc2.weight")
    ]
    with pytest.raises(ConfigurationError, match="47 rows or columns, which 2 ranks"):
        list(pieces_of(fc2[0], odd, Layout(tp=2)))
