"""The one table of features that recipes may name but this version does not have.

Each entry says what to write instead. The keys stay fields, so that a recipe which
switches such a feature off is valid; deleting an entry makes the feature available.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Refusal(NamedTuple):
    """When a value is refused, and the sentence that says what to use instead."""

    when: Callable[[Any], bool]
    instead: str


def _on(value: Any) -> bool:
    return bool(value)


def _above_one(value: Any) -> bool:
    return value is not None and value > 1


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value in values


_RAISE_TP = "Keep it at 1 and raise tensor_model_parallel_size instead."

UNAVAILABLE: dict[tuple[str, str], Refusal] = {
    ("DTensorConfig", "context_parallel_size"): Refusal(
        _above_one, "Keep it at 1 and raise tensor_parallel_size instead."
    ),
    ("DTensorConfig", "sequence_parallel"): Refusal(
        _on,
        "Set it to false; activation_checkpointing and a smaller "
        "policy.train_micro_batch_size save memory.",
    ),
    ("DTensorConfig", "lora_cfg"): Refusal(
        lambda value: bool(value) and value.get("enabled", True),
        "Train all weights: leave lora_cfg out.",
    ),
    ("DTensorConfig", "automodel_kwargs"): Refusal(
        _on,
        "Leave it out: models are those of transformers' AutoModelForCausalLM; "
        "policy.hf_config_overrides changes their configuration.",
    ),
    ("MegatronConfig", "context_parallel_size"): Refusal(_above_one, _RAISE_TP),
    ("MegatronConfig", "expert_tensor_parallel_size"): Refusal(
        _above_one,
        "Leave it out: every expert is on one process; raise "
        "expert_model_parallel_size instead.",
    ),
    ("MegatronConfig", "moe_router_load_balancing_type"): Refusal(
        lambda value: value not in (None, "none"),
        "Set it to 'none': the loss has no auxiliary term.",
    ),
    ("MegatronConfig", "moe_enable_deepep"): Refusal(
        _on, "Set it to false; moe_token_dispatcher_type 'alltoall' does its work."
    ),
    ("MegatronConfig", "moe_shared_expert_overlap"): Refusal(_on, "Set it to false."),
    ("MegatronConfig", "moe_per_layer_logging"): Refusal(_on, "Set it to false."),
    ("MegatronConfig", "track_moe_metrics"): Refusal(_on, "Set it to false."),
    ("MegatronConfig", "virtual_pipeline_model_parallel_size"): Refusal(
        _above_one, "Leave it out: the pipeline runs without interleaving."
    ),
    ("MegatronConfig", "sequence_parallel"): Refusal(
        _on,
        "Set it to false: one token at a time, as generation feeds it, cannot be "
        "divided.",
    ),
    ("MegatronConfig", "num_layers_in_first_pipeline_stage"): Refusal(
        lambda value: value is not None,
        "Leave it out: stages hold the same number of layers.",
    ),
    ("MegatronConfig", "num_layers_in_last_pipeline_stage"): Refusal(
        lambda value: value is not None,
        "Leave it out: stages hold the same number of layers.",
    ),
    ("MegatronConfig", "fp8_cfg"): Refusal(
        lambda value: bool(value) and value.get("enabled", True),
        "Train in policy.precision 'bfloat16'.",
    ),
    ("MegatronConfig", "peft"): Refusal(
        lambda value: bool(value) and value.get("enabled", True),
        "Train all weights: leave peft out.",
    ),
    ("MegatronOptimizerConfig", "optimizer"): Refusal(
        lambda value: value != "adam", "Use 'adam' (decoupled weight decay)."
    ),
    ("MegatronOptimizerConfig", "optimizer_cpu_offload"): Refusal(
        _on, "Set it to false; use_distributed_optimizer spreads the state over ranks."
    ),
    ("MegatronOptimizerConfig", "fp16"): Refusal(
        _on, "Set policy.precision to 'bfloat16'."
    ),
    ("DDPConfig", "use_custom_fsdp"): Refusal(
        _on, "Set it to false; use_distributed_optimizer spreads the state over ranks."
    ),
    ("VllmEngineConfig", "use_deep_gemm"): Refusal(
        _on, "Set it to false; precision 'bfloat16' is the fastest."
    ),
    ("VllmEngineConfig", "enable_vllm_metrics_logger"): Refusal(
        _on, "Set it to false; metrics.jsonl has timing/generation_s and tokens_per_s."
    ),
    ("VllmEngineConfig", "expose_http_server"): Refusal(
        _on,
        "Set it to false; to serve the weights, start `vllm serve` on the folder that "
        "checkpointing.export_hf writes.",
    ),
    ("GenerationConfig", "include_stop_str_in_output"): Refusal(
        lambda value: not value,
        "Set it to true: what ended a response was sampled and is trained on.",
    ),
    ("TokenizerConfig", "chat_template_kwargs"): Refusal(
        _on, "Write the values into a template and set policy.tokenizer.chat_template."
    ),
    ("SequencePackingConfig", "enabled"): Refusal(
        _on,
        "Set it to false; micro-batches are padded to their longest sequence.",
    ),
    ("DynamicBatchingConfig", "enabled"): Refusal(
        _on, "Set it to false and choose policy.train_micro_batch_size."
    ),
    ("LoggerConfig", "swanlab_enabled"): Refusal(
        _on, "Use tensorboard_enabled, wandb_enabled or mlflow_enabled."
    ),
}
"""(section class, field) -> when its value is refused, and what to use instead."""


def refusal(section: str, field: str, value: Any) -> str | None:
    """Return why a value of a field is refused, or None if it is available."""
    entry = UNAVAILABLE.get((section, field))
    if entry is None or not entry.when(value):
        return None
    return f"is not available in this version. {entry.instead}"
