"""Sizes of a model by the names that rules use."""

from __future__ import annotations

import pytest

from nemo_rl.converters.model_spec import Mla, ModelSpec, Moe, Rope

DENSE = ModelSpec(
    architecture="LlamaForCausalLM",
    num_layers=3,
    hidden_size=64,
    ffn_hidden_size=96,
    num_heads=8,
    num_kv_heads=4,
    head_dim=16,
    vocab_size=131,
    max_positions=256,
    norm_eps=1e-6,
    rope=Rope(1e4),
    tied=True,
)


def spec(**changes):
    return ModelSpec(**{**vars(DENSE), **changes})


def test_shapes_are_spelled_by_the_names_of_their_dimensions():
    assert DENSE.shape("vocab hidden") == (131, 64)
    assert DENSE.shape("query") == (128,)
    assert DENSE.shape("qkv hidden") == (256, 64)
    assert DENSE.shape("gate_up hidden") == (192, 64)
    with pytest.raises(KeyError):
        DENSE.shape("experts hidden")


def test_shapes_of_experts_and_latent_attention():
    moe = Moe(4, 2, 24, (False, True, True), True, shared_ffn=48)
    found = spec(moe=moe, mla=Mla(None, 16, 8, 4, 6))
    assert found.shape("experts expert_ffn shared_ffn") == (4, 24, 48)
    assert found.shape("latent mla_query mla_key_value mla_value") == (20, 96, 112, 48)
    assert found.mixed and not DENSE.mixed
    assert [found.has_experts(n) for n in range(3)] == [False, True, True]
    assert not spec(moe=Moe(4, 2, 24, (True,) * 3, True)).mixed


@pytest.mark.parametrize(("divisor", "padded"), [(1, 131), (2, 132), (4, 132)])
def test_padded_vocab(divisor, padded):
    assert DENSE.padded_vocab(divisor) == padded
