"""Weights of both kinds of folder, and the account that is made of them."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.converters.bridge import (
    HfSide,
    MegatronSide,
    find_weights,
    is_megatron,
    some,
    weights_of,
)
from nemo_rl.converters.families import model_spec
from nemo_rl.converters.formats.dist_writer import DistCheckpointWriter
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.utils.exceptions import CheckpointError
from tests.fakes import models


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "qwen2"
    return models.save(folder, "qwen2", tied=False, layers=2, hidden=32)


@pytest.fixture(scope="module")
def spec(source):
    return model_spec(read_hf_config(source))


def written(folder, spec, *, left_out=(), extra=(), pad=0, cut=()):
    """A checkpoint of ones with the given faults."""
    writer = DistCheckpointWriter(folder)
    for weight in weights_of(spec):
        if weight.key in left_out:
            continue
        value = torch.ones(weight.shape)
        if pad and len(weight.shape) == 2 and not weight.stack:
            value = torch.cat([value, torch.zeros(pad, value.shape[1])])
        if weight.key in cut:
            value = value[:-1]
        writer.add(weight.key, value, weight.index, weight.stack)
    for key in extra:
        writer.add(key, torch.ones(2))
    writer.finish({})
    return folder


def test_weights_have_checkpoint_keys_layers_and_shapes(spec):
    weights = {(w.key, w.index): w for w in weights_of(spec)}
    assert len(weights) == 3 + 2 * 7
    qkv = weights["decoder.layers.self_attention.linear_qkv.weight", (1,)]
    rows = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
    assert qkv.shape == (rows, 32)
    assert qkv.stack == (2,)
    assert next(iter(qkv.rule.hf)) == "model.layers.1.self_attn.q_proj.weight"
    # Norms have the names that Transformer Engine gives them.
    key = "decoder.layers.mlp.linear_fc1.layer_norm_weight"
    (name,) = weights[key, (0,)].rule.hf
    assert name == "model.layers.0.post_attention_layernorm.weight"
    assert weights["output_layer.weight", ()].shape == (131, 32)


def test_experts_are_stacked_and_layers_of_two_kinds_are_not(tmp_path):
    models.save(tmp_path, "qwen3_moe-mixed", layers=3, hidden=32)
    mixed = model_spec(read_hf_config(tmp_path))
    weights = {(w.key, w.index): w for w in weights_of(mixed)}
    expert = weights["decoder.layers.2.mlp.experts.experts.linear_fc1.weight", (3,)]
    assert (expert.shape, expert.stack) == ((48, 32), (4,))
    assert "model.layers.2.mlp.experts.3.up_proj.weight" in expert.rule.hf
    assert ("decoder.layers.1.mlp.linear_fc1.layer_norm_weight", ()) in weights
    assert ("decoder.layers.0.pre_mlp_layernorm.weight", ()) in weights
    stacked = {w.key: w for w in weights_of(mixed, stacked=True)}
    expert = stacked["decoder.layers.mlp.experts.experts.linear_fc1.weight"]
    assert (expert.index, expert.stack) == ((2, 3), (3, 4))


def test_both_sides_give_hugging_face_tensors(source, spec, tmp_path):
    hf, megatron = HfSide(source, spec), MegatronSide(written(tmp_path, spec), spec)
    for weight in weights_of(spec):
        assert set(hf.dtypes(weight)) == set(megatron.dtypes(weight)) == {torch.float32}
        for ours, theirs in zip(megatron.parts(weight), hf.parts(weight), strict=True):
            assert ours.shape == theirs.shape
            assert (ours == 1).all()


def test_padding_of_the_vocabulary_is_dropped(spec, tmp_path):
    side = MegatronSide(written(tmp_path, spec, pad=5), spec)
    (embedding,) = side.parts(weights_of(spec)[0])
    assert embedding.shape == (131, 32)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"left_out": ["output_layer.weight"]}, "Missing: output_layer.weight. Unexp"),
        ({"extra": ["model.embed_tokens.weight"]}, "not Megatron's. Use dcp-to-hf"),
        ({"extra": ["decoder.new"]}, "Missing: none. Unexpected: decoder.new"),
        (
            {"cut": ["embedding.word_embeddings.weight"]},
            r"word_embeddings.weight is \[130, 32\], expected \[131, 32\]",
        ),
        (
            {"cut": ["decoder.layers.mlp.linear_fc2.weight"]},
            r"linear_fc2.weight is \[2, 31, \d+\], expected \[2, 32,",
        ),
    ],
)
def test_what_does_not_fit_the_configuration_is_refused(spec, tmp_path, fault, message):
    with pytest.raises(CheckpointError, match=message):
        MegatronSide(written(tmp_path, spec, **fault), spec)


def test_the_optimizer_is_left_alone(spec, tmp_path):
    extra = ["optimizer.state.exp_avg.output_layer.weight"]
    assert MegatronSide(written(tmp_path, spec, extra=extra), spec)


def test_a_training_checkpoint_is_found_around_its_weights(spec, tmp_path):
    weights = tmp_path / "step_000010" / "policy" / "weights"
    weights.mkdir(parents=True)
    written(weights, spec)
    for place in (weights, weights.parent, tmp_path / "step_000010"):
        assert find_weights(place) == weights
    assert not is_megatron(tmp_path)
    with pytest.raises(CheckpointError, match="holds no Megatron checkpoint"):
        find_weights(tmp_path)


def test_a_long_list_is_counted():
    assert some("cab") == "a, b, c"
    assert some("abcdefg") == "a, b, c, d, e and 2 more"
    assert some(()) == "none"
