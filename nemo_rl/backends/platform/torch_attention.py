"""Causal attention by torch's scaled_dot_product_attention, for megatron-core.

It serves GQA without repeating keys and needs no [S, S] score tensor. Knows tensors
and Megatron's interface of an attention core; also sliding windows, and bounded scores.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class TorchAttention(MegatronModule):
    """Causal attention core over [S, B, heads, head_dim] (S first, as Megatron has it).

    Args:
        config: the model's transformer configuration.
        layer_number: 1-based; decides whether the layer slides.
        softmax_scale: None for ``head_dim ** -0.5``.
        softcap: bound c of the scores, which become c tanh(x / c); None without one.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        softmax_scale: float | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.scale, self.softcap = softmax_scale, softcap
        self.dropout = config.attention_dropout
        size, frequency = config.window_size, config.window_attn_skip_freq
        slides = is_layer_window_attention(size, frequency, layer_number)
        self.window = size[0] + 1 if slides else None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        """Attend every query to the keys at and before its own position.

        Args:
            query: [Sq, B, heads, head_dim]; its rows are the last Sq positions.
            key: [Sk, B, groups, head_dim], Sk >= Sq (more with a KV cache).
            value: [Sk, B, groups, value_dim].

        Returns:
            [Sq, B, heads * value_dim].
        """
        q_len, batch = query.shape[:2]
        if self.window is not None and len(key) > self.window + q_len - 1:
            # No query of this call sees what lies before.
            first = len(key) - (self.window + q_len - 1)
            key, value = key[first:], value[first:]
        k_len = key.shape[0]
        if q_len == 1:
            return self._decode(query, key, value)
        # A head's rows in one piece: heads narrower than a vector register are
        # otherwise gathered number by number.
        q, k, v = (x.permute(1, 2, 0, 3).contiguous() for x in (query, key, value))
        mask = None
        narrow = self.window is not None and k_len > self.window
        if q_len < k_len or narrow or self.softcap is not None:
            offset = k_len - q_len
            mask = torch.ones(q_len, k_len, dtype=torch.bool, device=q.device)
            mask = mask.tril(offset)
            if self.window is not None:
                mask = mask.triu(offset - self.window + 1)
        if self.softcap is not None:
            out = self._capped(q, k, v, mask)
            return out.permute(2, 0, 1, 3).reshape(q_len, batch, -1)
        out = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out.permute(2, 0, 1, 3).reshape(q_len, batch, -1)

    def _bounded(self, scores: Tensor) -> Tensor:
        if self.softcap is None:
            return scores
        return self.softcap * torch.tanh(scores / self.softcap)

    def _capped(self, q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
        """[B, heads, Sq, D] written out: torch has no kernel with a bound."""
        batch, heads, rows, dim = q.shape
        grouped = q.view(batch, k.shape[1], -1, rows, dim) * (self.scale or dim**-0.5)
        scores = self._bounded(torch.matmul(grouped, k[:, :, None].transpose(-1, -2)))
        scores = scores.masked_fill(~mask, float("-inf"))
        weights = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
        out = torch.matmul(weights, v[:, :, None])
        return out.view(batch, heads, rows, -1)

    def _decode(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One query per row: two small products per group beat torch's flash kernel."""
        _, batch, heads, dim = query.shape
        groups = key.shape[2]
        scale = self.scale or dim**-0.5
        q = (query * scale).view(batch, groups, heads // groups, dim)
        scores = self._bounded(torch.matmul(q, key.permute(1, 2, 3, 0)))
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        return torch.matmul(weights, value.permute(1, 2, 0, 3)).view(1, batch, -1)
