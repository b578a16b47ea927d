"""A megatron-core GPT model for this rank, from a Hugging Face folder.

Knows shapes, layouts and weight rules; no optimizer and no training step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import silu

from nemo_rl.backends.platform import Platform
from nemo_rl.backends.platform.layer_spec import build_layer_spec
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.converters.bridge import check_tensors
from nemo_rl.converters.families import rules_for
from nemo_rl.converters.hf import HfWeights
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.rules import canonical_name
from nemo_rl.converters.transforms import PadVocabulary, pad_rows

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PolicyModel(GPTModel):
    """GPT whose output layer sees only the positions that are asked for.

    With ``select`` (a [B, S] mask) the last stage returns logits [1, T, V/tp] of the
    T selected positions in row-major order: prompts and padding cost no vocabulary
    projection.
    """

    _select: Tensor | None = None

    def forward(
        self, *args: Any, select: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """As ``GPTModel.forward``, with ``select`` besides."""
        self._select = select
        try:
            return super().forward(*args, **kwargs)
        finally:
            self._select = None

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._select is not None and self.post_process:
            hidden_states = hidden_states.transpose(0, 1)[self._select][:, None]
        return super()._postprocess(hidden_states, *args, **kwargs)


def transformer_config(
    spec: ModelSpec, policy: PolicyConfig, platform: Platform
) -> TransformerConfig:
    """Megatron's configuration of the model under the policy's layout."""
    megatron = policy.megatron_cfg
    dtype = _DTYPES[policy.precision]
    recompute: dict[str, Any] = {}
    if megatron.activation_checkpointing:
        recompute = {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    fields: dict[str, Any] = {
        "num_layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "ffn_hidden_size": spec.ffn_hidden_size,
        "num_attention_heads": spec.num_heads,
        "num_query_groups": spec.num_kv_heads,
        "kv_channels": spec.head_dim,
        "normalization": "RMSNorm",
        "layernorm_epsilon": spec.norm_eps,
        "gated_linear_unit": True,
        "activation_func": silu,
        "add_bias_linear": False,
        "add_qkv_bias": spec.qkv_bias,
        "qk_layernorm": spec.qk_norm,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bf16": dtype is torch.bfloat16,
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "tensor_model_parallel_size": megatron.tensor_model_parallel_size,
        "pipeline_model_parallel_size": megatron.pipeline_model_parallel_size,
        # The loss is a share of a sum: Megatron must neither average nor rescale it.
        "calculate_per_token_loss": True,
        **recompute,
        **platform.transformer_overrides,
    }
    return TransformerConfig(**fields)


def build_model(
    spec: ModelSpec, policy: PolicyConfig, platform: Platform
) -> tuple[PolicyModel, TransformerConfig]:
    """This rank's part of the model, weights still undefined."""
    config = transformer_config(spec, policy, platform)
    kind = policy.megatron_cfg.layer_spec
    kind = platform.layer_spec if kind == "auto" else kind
    scaling: dict[str, Any] = {}
    if spec.rope_scaling_factor is not None:
        scaling = {
            "rope_scaling": True,
            "rope_scaling_factor": spec.rope_scaling_factor,
        }
    model = PolicyModel(
        config=config,
        transformer_layer_spec=build_layer_spec(kind, qk_norm=spec.qk_norm),
        vocab_size=spec.padded_vocab(config.tensor_model_parallel_size),
        max_sequence_length=max(spec.max_positions, policy.max_total_sequence_length),
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=True,
        share_embeddings_and_output_weights=spec.tied,
        position_embedding_type="rope",
        rotary_base=spec.rope_theta,
        **scaling,
    )
    return model.to(platform.device), config


def layer_offset(model: PolicyModel) -> int:
    """Layers on earlier pipeline stages."""
    layers = model.decoder.layers
    return layers[0].layer_number - 1 if len(layers) else 0


def rule_name(parameter: str, model: PolicyModel, spec: ModelSpec) -> str:
    """The rule a rank's parameter belongs to; a tied output layer is the embedding."""
    name = canonical_name(parameter, layer_offset(model))
    if spec.tied and name == "output_layer.weight":
        return "embedding.word_embeddings.weight"
    return name


@torch.no_grad()
def load_hf_weights(model: PolicyModel, spec: ModelSpec, folder: Path) -> None:
    """Fill this rank's parameters from safetensors, one tensor at a time.

    Every source tensor of the model must belong to a rule, with the shape that the
    configuration implies, and every parameter must be filled. Every rank compares all
    names and shapes before it copies anything.

    Raises:
        ConfigurationError: missing, surplus or misshapen tensors, all listed.
    """
    rules = rules_for(spec)
    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    tp_size = parallel_state.get_tensor_model_parallel_world_size()
    with HfWeights(folder) as weights:
        check_tensors(weights, spec)
        for name, parameter in model.named_parameters():
            rule = rules[rule_name(name, model, spec)]
            full = rule.transform.merge([weights.tensor(n) for n in rule.hf], spec)
            if isinstance(rule.transform, PadVocabulary):
                full = pad_rows(full, spec.padded_vocab(tp_size))
            # copy_ would broadcast: a part of another shape must not get that far.
            part = rule.shard.shard(full, tp_rank, tp_size)
            parameter.copy_(part.view(parameter.shape))
