"""Parts of a layer that megatron-core does not have: those of Gemma 2 and 3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.utils import is_layer_window_attention
from torch import Tensor, nn


class OffsetRMSNorm(nn.Module):
    """RMSNorm that multiplies with one plus its weight, in fp32 (Gemma).

    Args:
        config: the model's transformer configuration; unused, part of the interface.
        hidden_size: of the last dimension.
        eps: added to the mean square.
    """

    def __init__(
        self, config: Any = None, hidden_size: int = 0, eps: float = 1e-6, **_: Any
    ) -> None:
        super().__init__()
        dtype = torch.float32 if config is None else config.params_dtype
        self.weight = nn.Parameter(torch.zeros(hidden_size, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., H]."""
        wide = x.float()
        scale = wide.square().mean(-1, keepdim=True).add(self.eps).rsqrt()
        return (wide * scale * (1.0 + self.weight.float())).to(x.dtype)


class NormThenAdd(OffsetRMSNorm):
    """Adds the norm of a sublayer's output to the residual stream.

    Stands where megatron-core has the function that adds bias and residual.

    Args:
        hidden_size: of the model.
        eps: of the norm.
    """

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__(None, hidden_size, eps)

    def forward(self, training: bool, fused: bool) -> Callable[..., Tensor]:  # type: ignore[override]
        """As ``get_bias_dropout_add``; there is neither bias nor dropout."""

        def add(
            output_with_bias: tuple[Tensor, Any], residual: Tensor, dropout: float
        ) -> Tensor:
            # Megatron calls this with gradients on, also in evaluation.
            with torch.set_grad_enabled(training):
                normed = OffsetRMSNorm.forward(self, output_with_bias[0])
            return residual + normed

        return add


class LocalRotaryEmbedding(RotaryEmbedding):
    """Two rotations for two kinds of layers: [2, S, 1, 1, D], global and sliding."""

    def add_local(self, other: RotaryEmbedding) -> None:
        """Set the rotation of the sliding layers."""
        self.local = other

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Angles of both kinds; see ``RotaryEmbedding``."""
        return torch.stack(
            [super().forward(*args, **kwargs), self.local(*args, **kwargs)]
        )


class LocalRopeAttention(SelfAttention):
    """Self-attention that takes its layer's rotation out of both."""

    def forward(self, *args: Any, rotary_pos_emb: Any = None, **kwargs: Any) -> Any:
        """As ``SelfAttention.forward``, with angles [2, S, 1, 1, D]."""
        config = self.config
        sliding = is_layer_window_attention(
            config.window_size, config.window_attn_skip_freq, self.layer_number
        )
        if rotary_pos_emb is not None:
            rotary_pos_emb = rotary_pos_emb[int(sliding)]
        return super().forward(*args, rotary_pos_emb=rotary_pos_emb, **kwargs)
