"""Rules that span sections: sizes of job and batches, and of a model's shape.

Every message says what was read, what was expected, and the nearest valid value.
Knows no algorithm: they pass in how many samples a step has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_rl.config.backends import (
    model_sizes,
    tensor_parallel_key,
    training_backend,
)
from nemo_rl.config.master import MasterConfig
from nemo_rl.config.parallel import ParallelDims, divisors, nearest
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.utils.exceptions import ConfigurationError


def validate_master(config: MasterConfig) -> None:
    """Check what can be checked without the model's shape.

    Raises:
        ConfigurationError: the parallel sizes do not divide the world size, lengths
            do not fit, or a setting needs another machine.
    """
    _validate_lengths(config)
    scored = config.policy.reward_model_cfg.enabled
    if scored and not config.scores:
        raise ConfigurationError(
            "policy.reward_model_cfg.enabled=true, but only algorithm 'rm' trains a "
            "reward model. Set it to false, or use the section rm."
        )
    megatron, cluster = config.policy.megatron_cfg, config.cluster
    dims = config.parallel_dims
    on = training_backend(config.policy) == "megatron"
    if on and megatron.layer_spec == "te" and not cluster.use_gpus:
        raise ConfigurationError(
            "policy.megatron_cfg.layer_spec='te' needs GPUs, but "
            "cluster.gpus_per_node=0: set it to 'auto' or 'torch'."
        )
    if cluster.use_gpus and dims.tp > cluster.gpus_per_node:
        raise ConfigurationError(
            f"{tensor_parallel_key(config.policy)}={dims.tp} exceeds "
            f"cluster.gpus_per_node={cluster.gpus_per_node}: tensor-parallel processes "
            "exchange data in every layer and must share a node. Nearest valid: "
            f"{nearest(cluster.gpus_per_node, divisors(cluster.gpus_per_node))}."
        )


def _validate_lengths(config: MasterConfig) -> None:
    total = config.policy.max_total_sequence_length
    new = config.policy.generation.max_new_tokens
    wanted = config.data.max_input_seq_length
    if config.samples and new > total:
        raise ConfigurationError(
            f"policy.generation.max_new_tokens={new} exceeds "
            f"policy.max_total_sequence_length={total}, prompt and response together. "
            f"Lower it to {total - 1} or less."
        )
    if wanted is not None and wanted > total:
        raise ConfigurationError(
            f"data.max_input_seq_length={wanted} exceeds "
            f"policy.max_total_sequence_length={total}. Lower it to {total} or less."
        )


def validate_batches(
    policy: PolicyConfig, dims: ParallelDims, samples: int, samples_name: str
) -> None:
    """Check that a step's samples split into updates, copies and micro-batches.

    Args:
        policy: names the batch sizes.
        dims: the copies of the model (dp).
        samples: sequences that one step trains on.
        samples_name: the keys that `samples` comes from, for the message.

    Raises:
        ConfigurationError: one of them does not divide the next.
    """
    batch, micro = policy.train_global_batch_size, policy.train_micro_batch_size
    if samples % batch:
        raise ConfigurationError(
            f"policy.train_global_batch_size={batch} does not divide the {samples} "
            f"samples of a step ({samples_name}). "
            f"Nearest valid: {nearest(batch, divisors(samples))}."
        )
    if batch % dims.dp:
        raise ConfigurationError(
            f"policy.train_global_batch_size={batch} is not a multiple of the "
            f"{dims.dp} copies of the model (world size {dims.world_size} / tensor "
            f"{dims.tp} / pipeline {dims.pp}). Nearest valid: "
            f"{_multiples(batch, dims.dp)}."
        )
    share = batch // dims.dp
    if share % micro:
        raise ConfigurationError(
            f"policy.train_micro_batch_size={micro} does not divide the {share} "
            "samples of each copy of the model (policy.train_global_batch_size="
            f"{batch} / {dims.dp} copies). Nearest valid: "
            f"{nearest(micro, divisors(share))}."
        )


def _multiples(number: int, factor: int) -> str:
    below = number // factor * factor
    return " or ".join(str(m) for m in (below, below + factor) if m)


def validate_model_shape(
    config: MasterConfig | PolicyConfig, hf_config: Mapping[str, Any]
) -> None:
    """Check that the parallel sizes divide the model.

    Args:
        config: a recipe, or its policy section.
        hf_config: the model's config.json as a mapping (or an object's `to_dict()`).

    Raises:
        ConfigurationError: heads, key-value heads or layers do not divide, or a
            sequence is longer than the model's positions; names the nearest value.
    """
    policy = config.policy if isinstance(config, MasterConfig) else config
    shape = {**hf_config, **policy.hf_config_overrides}
    if isinstance(shape.get("text_config"), Mapping):
        shape = {**shape, **shape["text_config"]}
    model, key = policy.model_name, tensor_parallel_key(policy)
    heads = shape.get("num_attention_heads")
    tp, pp = model_sizes(policy)
    if heads is not None:
        kv_heads = shape.get("num_key_value_heads") or heads
        valid = [d for d in divisors(heads) if kv_heads % d == 0]
        if tp not in valid:
            raise ConfigurationError(
                f"{key}={tp} does not divide "
                f"{heads} attention heads and {kv_heads} key-value heads of {model}; "
                f"nearest valid: {nearest(tp, valid)}."
            )
    width = shape.get("intermediate_size")
    if width is not None and width % tp:
        raise ConfigurationError(
            f"{key}={tp} does not divide the "
            f"feed-forward width {width} of {model}; nearest valid: "
            f"{nearest(tp, divisors(width))}."
        )
    layers = shape.get("num_hidden_layers")
    if layers is not None and layers % pp:
        raise ConfigurationError(
            f"policy.megatron_cfg.pipeline_model_parallel_size={pp} does not divide "
            f"the {layers} layers of {model}; nearest valid: "
            f"{nearest(pp, divisors(layers))}."
        )
    positions = shape.get("max_position_embeddings")
    length = policy.max_total_sequence_length
    if positions is not None and length > positions:
        raise ConfigurationError(
            f"policy.max_total_sequence_length={length} exceeds the {positions} "
            f"positions of {model}; set it to {positions} or less."
        )
