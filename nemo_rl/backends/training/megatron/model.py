"""A megatron-core GPT model for this rank, from a Hugging Face folder.

Knows shapes, layouts and weight rules; no optimizer and no training step.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nemo_rl.backends.platform import Platform
from nemo_rl.backends.training.megatron.gemma_layers import LocalRotaryEmbedding
from nemo_rl.backends.training.megatron.layer_spec import build_block_spec
from nemo_rl.backends.training.megatron.transformer import transformer_config
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.converters.bridge import check_tensors
from nemo_rl.converters.families import rules_for
from nemo_rl.converters.formats.hf import HfWeights
from nemo_rl.converters.model_spec import ModelSpec, Rope
from nemo_rl.converters.rules import WeightRule, canonical_name
from nemo_rl.converters.transforms import PadVocabulary, pad_rows
from nemo_rl.utils.seeding import derive_seed


class ScoreHead(torch.nn.Module):
    """The output layer of a reward model: one number per position, on every rank."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dtype = config.params_dtype
        self.weight = torch.nn.Parameter(
            torch.empty(1, config.hidden_size, dtype=dtype)
        )

    def forward(self, hidden: Tensor, **_: Any) -> tuple[Tensor, None]:
        """[T, 1, hidden] to [T, 1, 1], called as Megatron's own output layer is."""
        return torch.nn.functional.linear(hidden, self.weight), None

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw the weights from N(0, 1 / (hidden + 1)), alike on every rank.

        Stiennon et al. 2020 (arXiv:2009.01325, appendix B).
        """
        width = self.weight.shape[1]
        generator = torch.Generator().manual_seed(derive_seed(seed, "score"))
        self.weight.copy_(
            torch.randn(1, width, generator=generator) / (width + 1) ** 0.5
        )


class PolicyModel(GPTModel):
    """GPT whose output layer sees only the positions that are asked for.

    With ``select`` (a [B, S] mask) the last stage returns logits [1, T, V/tp] of the
    T selected positions in row-major order: prompts and padding cost no vocabulary
    projection.
    """

    _select: Tensor | None = None
    softcap: float | None = None
    """Bound c of the logits, which become c tanh(x / c); None without one."""

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
        output = super()._postprocess(hidden_states, *args, **kwargs)
        if self.softcap is not None and self.post_process:
            output = self.softcap * torch.tanh(output / self.softcap)
        return output


def build_model(
    spec: ModelSpec, policy: PolicyConfig, platform: Platform
) -> tuple[PolicyModel, TransformerConfig]:
    """This rank's part of the model, weights still undefined."""
    config = transformer_config(spec, policy, platform)
    kind = policy.megatron_cfg.layer_spec
    kind = platform.layer_spec if kind == "auto" else kind
    model = PolicyModel(
        config=config,
        transformer_layer_spec=build_block_spec(kind, spec, config),
        vocab_size=spec.padded_vocab(config.tensor_model_parallel_size),
        max_sequence_length=max(spec.max_positions, policy.max_total_sequence_length),
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        parallel_output=True,
        share_embeddings_and_output_weights=spec.tied,
        position_embedding_type="rope",
        **_rotary(spec.rope),
    )
    model.softcap = spec.final_softcap
    if spec.scored and model.post_process:
        model.softcap, model.output_layer = None, ScoreHead(config)
    if policy.megatron_cfg.freeze_moe_router:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".mlp.router." not in name)
    if spec.local_rope is not None:
        model.rotary_pos_emb = _two_rotations(spec, config)
    if spec.scaled_embedding and model.pre_process:
        scale = torch.tensor(spec.hidden_size**0.5, dtype=config.params_dtype)
        model.embedding.register_forward_hook(lambda *call: call[-1] * scale.item())
    return model.to(platform.device), config


def _rotary(rope: Rope) -> dict[str, Any]:
    """Arguments of Megatron's rotary embedding."""
    fields: dict[str, Any] = {"rotary_base": rope.theta, "rotary_percent": rope.percent}
    if rope.kind == "linear":
        fields["seq_len_interpolation_factor"] = rope.factor
    elif rope.kind == "llama3":
        fields |= {"rope_scaling": True, "rope_scaling_factor": rope.factor}
    return fields


def _two_rotations(spec: ModelSpec, config: TransformerConfig) -> LocalRotaryEmbedding:
    common: dict[str, Any] = {
        "kv_channels": spec.head_dim,
        "use_cpu_initialization": config.use_cpu_initialization,
    }
    assert spec.local_rope is not None
    both = LocalRotaryEmbedding(**common, **_rotary(spec.rope))
    both.add_local(RotaryEmbedding(**common, **_rotary(spec.local_rope)))
    return both


def layer_offset(model: PolicyModel) -> int:
    """Layers on earlier pipeline stages."""
    layers = model.decoder.layers
    return layers[0].layer_number - 1 if len(layers) else 0


def rule_name(parameter: str, model: PolicyModel, spec: ModelSpec) -> str:
    """The rule a rank's parameter belongs to; a tied output layer is the embedding."""
    experts = 0
    if spec.moe is not None:
        ranks = parallel_state.get_expert_model_parallel_world_size()
        place = parallel_state.get_expert_model_parallel_rank()
        experts = spec.moe.experts // ranks * place
    name = canonical_name(parameter, layer_offset(model), experts)
    if spec.tied and name == "output_layer.weight":
        return "embedding.word_embeddings.weight"
    return name


def weights_of_rank(
    model: PolicyModel, spec: ModelSpec
) -> Iterator[tuple[str, WeightRule, Tensor]]:
    """(parameter name, rule, tensor) of every weight that this rank holds.

    Parameters, and those buffers that a checkpoint of the model has.
    """
    rules = rules_for(spec)
    for name, parameter in model.named_parameters():
        yield name, rules[rule_name(name, model, spec)], parameter
    for name, buffer in model.named_buffers():
        rule = rules.get(rule_name(name, model, spec))
        if rule is not None:
            yield name, rule, buffer


def is_divided(rule: WeightRule, part: Tensor, spec: ModelSpec) -> bool:
    """Whether a rank holds a part of a weight, not all of it.

    Transformer Engine and Megatron's own modules divide different weights.
    """
    full = rule.megatron_shape(spec)
    return (
        rule.shard.dim is not None
        and part.shape[rule.shard.dim] < (full[rule.shard.dim])
    )


@torch.no_grad()
def load_hf_weights(
    model: PolicyModel, spec: ModelSpec, folder: Path, *, seed: int = 0
) -> None:
    """Fill this rank's parameters from safetensors, one tensor at a time.

    A reward model may begin with the weights of a language model: its score is then
    drawn anew.

    Every source tensor of the model must belong to a rule, with the shape that the
    configuration implies, and every parameter must be filled. Every rank compares all
    names and shapes before it copies anything.

    Raises:
        ConfigurationError: missing, surplus or misshapen tensors, all listed.
    """
    tp_rank = parallel_state.get_tensor_model_parallel_rank()
    tp_size = parallel_state.get_tensor_model_parallel_world_size()
    with HfWeights(folder) as weights:
        begins = spec.scored and "score.weight" not in weights.names()
        check_tensors(weights, spec, without_score=begins)
        for _, rule, parameter in weights_of_rank(model, spec):
            if begins and rule.megatron == "output_layer.weight":
                model.output_layer.initialise(seed)
                continue
            full = rule.transform.merge([weights.tensor(n) for n in rule.hf], spec)
            if isinstance(rule.transform, PadVocabulary):
                full = pad_rows(full, spec.padded_vocab(tp_size))
            if is_divided(rule, parameter, spec):
                full = rule.shard.shard(full, tp_rank, tp_size)
            # copy_ would broadcast: a part of another shape must not get that far.
            parameter.copy_(full.view(parameter.shape))
