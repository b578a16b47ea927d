"""Which modules a layer is made of, and what cannot be built."""

from __future__ import annotations

import dataclasses

import pytest

from nemo_rl.utils.exceptions import ConfigurationError
from tests.functional.ranks import run_ranks
from tests.unit.converters.test_model_spec import DENSE

import nemo_rl.backends.training.megatron.layer_spec as layer_spec  # isort: skip


def block(**changes):
    from megatron.core.transformer.transformer_config import TransformerConfig

    spec = dataclasses.replace(DENSE, **changes)
    config = TransformerConfig(
        num_layers=3, hidden_size=64, num_attention_heads=8, qk_layernorm=spec.qk_norm
    )
    return spec, config


def _built(rank, changes):
    from megatron.core import parallel_state

    from nemo_rl.backends.platform import setup

    setup(rank)
    parallel_state.initialize_model_parallel()
    found = layer_spec.build_block_spec("torch", *block(**changes))
    first = found.layer_specs[0].submodules
    attention = first.self_attention.submodules
    names = [
        attention.core_attention.module,
        attention.q_layernorm,
        first.input_layernorm,
        found.layer_norm,
    ]
    keys = list(first.sharded_state_dict_keys_map)
    return len(found.layer_specs), [name.__name__ for name in names], keys


def test_torch_layers_take_torch_attention_and_the_norms_of_the_model():
    ((count, names, _),) = run_ranks(_built, 1, {})
    assert count == 3
    assert names[:2] == ["TorchAttention", "IdentityOp"]
    ((_, names, keys),) = run_ranks(
        _built, 1, {"qk_norm": True, "offset_norms": True, "sandwich_norms": True}
    )
    assert names == ["TorchAttention", *["OffsetRMSNorm"] * 3]
    assert {"self_attn_bda.", "mlp_bda."} < set(keys)


def test_unknown_spec_is_refused_with_a_suggestion():
    with pytest.raises(ConfigurationError, match="'troch'.*Did you mean torch"):
        layer_spec.build_block_spec("troch", *block())


def test_transformer_engine_cannot_bound_scores():
    with pytest.raises(ConfigurationError, match="Transformer Engine cannot"):
        layer_spec.build_block_spec("te", *block(attention_softcap=50.0))
