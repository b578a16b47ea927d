"""Megatron's optimizer and gradient buffers from the policy section."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import (
    OptimizerConfig,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_rl.backends.training.megatron.model import PolicyModel
from nemo_rl.config.policy import PolicyConfig


def wrap_ddp(
    model: PolicyModel, config: TransformerConfig, policy: PolicyConfig
) -> DistributedDataParallel:
    """Gradient buffers and their reduction over data-parallel ranks (a sum)."""
    megatron = policy.megatron_cfg
    section = megatron.distributed_data_parallel_config
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=section.grad_reduce_in_fp32,
        overlap_grad_reduce=megatron.overlap_grad_reduce,
        use_distributed_optimizer=megatron.use_distributed_optimizer,
        average_in_collective=False,
        bucket_size=section.bucket_size,
    )
    wrapped = DistributedDataParallel(config, ddp, model)
    _count_padding(wrapped)
    config.finalize_model_grads_func = _finalize
    if megatron.overlap_grad_reduce:
        config.no_sync_func = wrapped.no_sync
    return wrapped


def _count_padding(model: DistributedDataParallel) -> None:
    """Have a reshardable checkpoint keep the padding at the end of every bucket.

    megatron-core 0.16.1 writes a bucket's parameters and its padding to the checkpoint
    but leaves the padding out of the offset of the next bucket: with several padded
    buckets, each after the first overwrites the end of the one before.
    """
    for buffer in [*model.buffers, *model.expert_parallel_buffers]:
        buffer.numel_unpadded = buffer.numel
        for bucket in buffer.buckets:
            bucket.numel_unpadded = bucket.grad_data.numel()


def _finalize(model: list[Any], num_tokens: Any = None, **kwargs: Any) -> None:
    # Loss shares are already divided by the global count; no count is passed on, so
    # Megatron sums the gradients and does not divide them again.
    del num_tokens
    finalize_model_grads(model, None, **kwargs)


def build_optimizer(policy: PolicyConfig, model: DistributedDataParallel) -> Any:
    """Adam with decoupled weight decay; biases and norms are not decayed."""
    kwargs = policy.optimizer.kwargs
    bf16 = policy.precision == "bfloat16"
    config = OptimizerConfig(
        optimizer="adam",
        lr=kwargs.lr,
        min_lr=0.0,
        weight_decay=kwargs.weight_decay,
        adam_beta1=kwargs.betas[0],
        adam_beta2=kwargs.betas[1],
        adam_eps=kwargs.eps,
        # Without a bound the norm is still measured, and reported.
        clip_grad=policy.max_grad_norm or math.inf,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=policy.megatron_cfg.use_distributed_optimizer,
    )
    overrides = get_standard_config_overrides(config)
    optimizer = get_megatron_optimizer(config, [model], config_overrides=overrides)
    for group in optimizer.param_groups:
        # Megatron leaves this to its scheduler, in whose place we set the rate.
        group["weight_decay"] = kwargs.weight_decay * group["wd_mult"]
    return optimizer
