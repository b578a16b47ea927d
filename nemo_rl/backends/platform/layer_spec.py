"""The layers a GPT block is made of: Transformer Engine's, or plain torch.

``torch`` takes megatron-core's local modules and replaces the attention core by
torch's scaled_dot_product_attention, which serves GQA without repeating keys and needs
no [S, S] score tensor. Both specs give the same checkpoint keys.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.suggest import did_you_mean

LAYER_SPECS = ("te", "torch")


def build_layer_spec(kind: str, *, qk_norm: bool) -> ModuleSpec:
    """The specification of one transformer layer.

    Args:
        kind: ``"te"`` or ``"torch"``.
        qk_norm: normalise queries and keys per head (Qwen3).

    Raises:
        ConfigurationError: unknown kind.
    """
    if kind == "te":
        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=qk_norm)
    if kind != "torch":
        raise ConfigurationError(
            f"policy.megatron_cfg.layer_spec={kind!r} is not a layer specification; "
            f"expected 'auto', 'te' or 'torch'.{did_you_mean(kind, LAYER_SPECS)}"
        )
    spec = get_gpt_layer_local_spec(qk_layernorm=qk_norm, normalization="RMSNorm")
    spec.submodules.self_attention.submodules.core_attention = TorchAttention
    return spec


class TorchAttention(MegatronModule):
    """Causal attention core over [S, B, heads, head_dim] (S first, as Megatron has it).

    Args:
        config: the model's transformer configuration.
        layer_number: 1-based; unused, part of the core-attention interface.
        softmax_scale: None for ``head_dim ** -0.5``.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        softmax_scale: float | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.scale = softmax_scale
        self.dropout = config.attention_dropout

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
    ) -> Tensor:
        """Attend every query to the keys at and before its own position.

        Args:
            query: [Sq, B, heads, head_dim]; its rows are the last Sq positions.
            key: [Sk, B, groups, head_dim], Sk >= Sq (more with a KV cache).
            value: as ``key``.

        Returns:
            [Sq, B, heads * head_dim].
        """
        q_len, batch = query.shape[:2]
        k_len = key.shape[0]
        if q_len == 1:
            return self._decode(query, key, value)
        # A head's rows in one piece: heads narrower than a vector register are
        # otherwise gathered number by number.
        q, k, v = (x.permute(1, 2, 0, 3).contiguous() for x in (query, key, value))
        mask = None
        if 1 < q_len < k_len:
            offset = k_len - q_len
            mask = torch.ones(q_len, k_len, dtype=torch.bool, device=q.device)
            mask = mask.tril(offset)
        out = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=q_len == k_len and q_len > 1,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out.permute(2, 0, 1, 3).reshape(q_len, batch, -1)

    def _decode(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One query per row: two small products per group beat torch's flash kernel."""
        _, batch, heads, dim = query.shape
        groups = key.shape[2]
        scale = self.scale or dim**-0.5
        q = (query * scale).view(batch, groups, heads // groups, dim)
        scores = torch.matmul(q, key.permute(1, 2, 3, 0))
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        return torch.matmul(weights, value.permute(1, 2, 0, 3)).view(1, batch, -1)
