"""The plain torch attention core against attention written out."""

from __future__ import annotations

import pytest
import torch

import tests.functional.ranks  # noqa: F401 - installs the shim
from nemo_rl.backends.platform.torch_attention import TorchAttention

HEADS, GROUPS, DIM = 4, 2, 3


def transformer(**changes):
    from megatron.core.transformer.transformer_config import TransformerConfig

    return TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * DIM,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        attention_dropout=0.0,
        **changes,
    )


@pytest.fixture(scope="module")
def config():
    return transformer()


def written_out(query, key, value, scale, window=None, cap=None):
    """Head by head and query by query; each sees keys up to its own position."""
    q_len, batch = query.shape[:2]
    offset = key.shape[0] - q_len
    out = torch.zeros(q_len, batch, HEADS, DIM)
    for row in range(batch):
        for head in range(HEADS):
            group = head * GROUPS // HEADS
            for position in range(q_len):
                end = offset + position + 1
                first = 0 if window is None else max(0, end - window)
                keys = key[first:end, row, group]
                scores = keys @ query[position, row, head] * scale
                if cap is not None:
                    scores = cap * torch.tanh(scores / cap)
                weights = torch.softmax(scores, 0)
                out[position, row, head] = weights @ value[first:end, row, group]
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


@pytest.mark.parametrize(("q_len", "k_len"), [(7, 7), (1, 2), (1, 8), (3, 8), (3, 4)])
@pytest.mark.parametrize("cap", [None, 0.5])
@pytest.mark.parametrize("slides", [True, False])
def test_attention_of_a_window_and_with_bounded_scores(q_len, k_len, cap, slides):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(q_len, 2, HEADS, DIM, generator=generator)
    key = torch.randn(k_len, 2, GROUPS, DIM, generator=generator)
    value = torch.randn(k_len, 2, GROUPS, DIM, generator=generator)
    config = transformer(window_size=(2, 0), window_attn_skip_freq=[int(slides)])
    core = TorchAttention(config, layer_number=1, softcap=cap)
    got = core(query, key, value, None, attn_mask_type=None)
    window = 3 if slides else None
    want = written_out(query, key, value, DIM**-0.5, window, cap)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
