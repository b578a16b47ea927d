"""The plain torch attention core against attention written out."""

from __future__ import annotations

import pytest
import torch

import tests.functional.ranks  # noqa: F401 - installs the shim
from nemo_rl.backends.platform.layer_spec import TorchAttention, build_layer_spec
from nemo_rl.utils.exceptions import ConfigurationError

HEADS, GROUPS, DIM = 4, 2, 3


@pytest.fixture(scope="module")
def config():
    from megatron.core.transformer.transformer_config import TransformerConfig

    return TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * DIM,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        attention_dropout=0.0,
    )


def written_out(query, key, value, scale):
    """Head by head and query by query; each sees keys up to its own position."""
    q_len, batch = query.shape[:2]
    offset = key.shape[0] - q_len
    out = torch.zeros(q_len, batch, HEADS, DIM)
    for row in range(batch):
        for head in range(HEADS):
            group = head * GROUPS // HEADS
            for position in range(q_len):
                end = offset + position + 1
                scores = key[:end, row, group] @ query[position, row, head] * scale
                weights = torch.softmax(scores, 0)
                out[position, row, head] = weights @ value[:end, row, group]
    return out.reshape(q_len, batch, HEADS * DIM)


@pytest.mark.parametrize(("q_len", "k_len"), [(5, 5), (1, 1), (1, 6), (3, 7)])
@pytest.mark.parametrize("scale", [None, 0.25])
def test_attention_is_causal_and_grouped(config, q_len, k_len, scale):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(q_len, 2, HEADS, DIM, generator=generator)
    key = torch.randn(k_len, 2, GROUPS, DIM, generator=generator)
    value = torch.randn(k_len, 2, GROUPS, DIM, generator=generator)
    core = TorchAttention(config, layer_number=1, softmax_scale=scale)
    got = core(query, key, value, None, attn_mask_type=None)
    want = written_out(query, key, value, scale or DIM**-0.5)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_torch_spec_takes_the_torch_attention_and_norms_only_if_asked():
    from megatron.core.transformer.identity_op import IdentityOp

    plain = build_layer_spec("torch", qk_norm=False).submodules.self_attention
    normed = build_layer_spec("torch", qk_norm=True).submodules.self_attention
    assert plain.submodules.core_attention is TorchAttention
    assert plain.submodules.q_layernorm in (None, IdentityOp)
    assert normed.submodules.q_layernorm not in (None, IdentityOp)
    assert normed.submodules.k_layernorm is normed.submodules.q_layernorm


def test_unknown_spec_is_refused_with_a_suggestion():
    with pytest.raises(ConfigurationError, match="'troch'.*Did you mean torch"):
        build_layer_spec("troch", qk_norm=False)
