"""Features that are refused, each with what to use instead."""

import importlib
import pkgutil

import pytest

import nemo_rl.config
from nemo_rl.algorithms.grpo.config import GRPOMasterConfig
from nemo_rl.api.functional import config_class
from nemo_rl.config.availability import UNAVAILABLE, refusal
from nemo_rl.config.base import BaseConfig, merge
from nemo_rl.utils.exceptions import ConfigurationError

REFUSED = {
    "policy.dtensor_cfg.context_parallel_size": (2, "raise tensor_parallel_size"),
    "policy.dtensor_cfg.sequence_parallel": (True, "Set it to false"),
    "policy.dtensor_cfg.lora_cfg": ({"dim": 8}, "Train all weights"),
    "policy.dtensor_cfg.automodel_kwargs": ({"a": 1}, "hf_config_overrides"),
    "policy.megatron_cfg.context_parallel_size": (2, "tensor_model_parallel_size"),
    "policy.megatron_cfg.expert_tensor_parallel_size": (2, "expert_model_parallel"),
    "policy.megatron_cfg.virtual_pipeline_model_parallel_size": (2, "Leave it out"),
    "policy.megatron_cfg.moe_router_load_balancing_type": ("aux_loss", "'none'"),
    "policy.megatron_cfg.moe_enable_deepep": (True, "alltoall"),
    "policy.megatron_cfg.moe_shared_expert_overlap": (True, "Set it to false"),
    "policy.megatron_cfg.moe_per_layer_logging": (True, "Set it to false"),
    "policy.megatron_cfg.track_moe_metrics": (True, "Set it to false"),
    "policy.megatron_cfg.sequence_parallel": (True, "cannot be divided"),
    "policy.megatron_cfg.num_layers_in_first_pipeline_stage": (1, "same number"),
    "policy.megatron_cfg.num_layers_in_last_pipeline_stage": (1, "same number"),
    "policy.megatron_cfg.fp8_cfg": ({"enabled": True}, "bfloat16"),
    "policy.megatron_cfg.peft": ({"dim": 8}, "all weights"),
    "policy.megatron_cfg.optimizer.optimizer": ("sgd", "Use 'adam'"),
    "policy.megatron_cfg.optimizer.optimizer_cpu_offload": (True, "Set it to false"),
    "policy.megatron_cfg.optimizer.fp16": (True, "bfloat16"),
    "policy.megatron_cfg.distributed_data_parallel_config.use_custom_fsdp": (
        True,
        "use_distributed_optimizer",
    ),
    "policy.generation.vllm_cfg.use_deep_gemm": (True, "bfloat16"),
    "policy.generation.vllm_cfg.enable_vllm_metrics_logger": (True, "metrics.jsonl"),
    "policy.generation.vllm_cfg.expose_http_server": (True, "vllm serve"),
    "policy.generation.include_stop_str_in_output": (False, "Set it to true"),
    "policy.tokenizer.chat_template_kwargs": ({"a": 1}, "tokenizer.chat_template"),
    "policy.sequence_packing.enabled": (True, "padded"),
    "policy.dynamic_batching.enabled": (True, "train_micro_batch_size"),
    "logger.swanlab_enabled": (True, "tensorboard_enabled"),
}


def nested(path: str, value: object) -> dict:
    for part in reversed(path.split(".")):
        value = {part: value}
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("path", REFUSED)
def test_refused_with_path_and_way_out(path: str) -> None:
    value, way_out = REFUSED[path]
    with pytest.raises(ConfigurationError) as error:
        GRPOMasterConfig.from_mapping(
            merge({"policy": {"model_name": "m"}}, nested(path, value))
        )
    text = str(error.value)
    assert text.startswith(f"{path}={value!r} is not available in this version. ")
    assert way_out in text


def test_every_entry_of_the_table_is_tested_and_names_a_field() -> None:
    classes: dict[str, type[BaseConfig]] = {}

    def walk(cls: type[BaseConfig]) -> None:
        classes[cls.__name__] = cls
        for sub in cls.__subclasses__():
            walk(sub)

    for module in pkgutil.iter_modules(nemo_rl.config.__path__, "nemo_rl.config."):
        importlib.import_module(module.name)
    for algorithm in ("grpo", "sft", "dpo"):
        config_class(algorithm)
    walk(BaseConfig)
    for section, field in UNAVAILABLE:
        assert field in classes[section].model_fields
    assert len(REFUSED) == len(UNAVAILABLE)


def test_switched_off_is_valid() -> None:
    config = GRPOMasterConfig(
        policy={
            "model_name": "m",
            "dtensor_cfg": {"_v2": True, "enabled": False},
            "sequence_packing": {"enabled": False, "train_mb_tokens": 10},
            "megatron_cfg": {"fp8_cfg": {"enabled": False}, "peft": {"enabled": False}},
        }
    )
    assert config.policy.dtensor_cfg.enabled is False


def test_assignment_is_refused_at_once() -> None:
    config = GRPOMasterConfig(policy={"model_name": "m"})
    with pytest.raises(ConfigurationError, match="sequence_parallel=True is not avail"):
        config.policy.dtensor_cfg.sequence_parallel = True
    assert refusal("DTensorConfig", "sequence_parallel", False) is None
    assert refusal("NoSuchSection", "enabled", True) is None
