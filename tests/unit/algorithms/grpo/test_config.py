"""The GRPO recipe: the reference's defaults, and recipes written for NeMo-RL."""

import pytest

from nemo_rl.algorithms.grpo.config import (
    ClippedPGLossConfig,
    GRPOConfig,
    GRPOMasterConfig,
)
from nemo_rl.config.loading import parse_yaml
from nemo_rl.config.references import resolve_references
from nemo_rl.utils.exceptions import ConfigurationError

NEMO_RL_STYLE = """
grpo:
  num_prompts_per_step: 32
  num_generations_per_prompt: 16
  max_rollout_turns: 1
  max_num_epochs: 1
  max_num_steps: 1000000
  normalize_rewards: true
  use_leave_one_out_baseline: true
  val_period: 10
  val_at_start: false
  overlong_filtering: false
  max_val_samples: 256
  val_batch_size: 256
  seed: 42
  use_dynamic_sampling: false
  dynamic_sampling_max_gen_batches: 10
  batch_multiplier: 1
  reward_shaping: {enabled: false, overlong_buffer_length: 128}
  reward_scaling: {enabled: false, source_min: 0.0}
  async_grpo: {enabled: false, max_trajectory_age_steps: 1}
loss_fn:
  reference_policy_kl_penalty: 0.01
  ratio_clip_min: 0.2
  ratio_clip_max: 0.2
  ratio_clip_c: null
  use_on_policy_kl_approximation: false
  use_importance_sampling_correction: false
  sequence_level_importance_ratios: false
  token_level_loss: true
checkpointing:
  enabled: true
  checkpoint_dir: results/grpo_math
  metric_name: "val:accuracy"
  higher_is_better: true
  keep_top_k: 3
  save_period: 10
  checkpoint_must_save_by: null
policy:
  model_name: meta-llama/Llama-3.1-8B-Instruct
  tokenizer: {name: "${policy.model_name}"}
  train_global_batch_size: 512
  train_micro_batch_size: 1
  generation_batch_size: 32
  logprob_batch_size: "${policy.train_micro_batch_size}"
  max_total_sequence_length: 4096
  precision: bfloat16
  logprob_chunk_size: null
  dtensor_cfg: {enabled: false}
  megatron_cfg:
    enabled: true
    empty_unused_memory_level: 0
    activation_checkpointing: false
    converter_type: LlamaForCausalLM
    tensor_model_parallel_size: 4
    pipeline_model_parallel_size: 2
    expert_tensor_parallel_size: 1
    expert_model_parallel_size: 1
    num_layers_in_first_pipeline_stage: null
    context_parallel_size: 1
    pipeline_dtype: "${policy.precision}"
    sequence_parallel: false
    freeze_moe_router: true
    moe_router_dtype: fp64
    moe_router_load_balancing_type: none
    moe_router_bias_update_rate: 0.0
    moe_permute_fusion: false
    apply_rope_fusion: true
    optimizer:
      optimizer: adam
      lr: 5.0e-7
      min_lr: 5.0e-8
      weight_decay: 0.01
      bf16: true
      fp16: false
      params_dtype: float32
      adam_beta1: 0.9
      adam_beta2: 0.999
      adam_eps: 1e-8
      use_distributed_optimizer: true
      use_precision_aware_optimizer: true
      clip_grad: "${policy.max_grad_norm}"
    scheduler:
      start_weight_decay: "${policy.megatron_cfg.optimizer.weight_decay}"
      end_weight_decay: "${policy.megatron_cfg.optimizer.weight_decay}"
      weight_decay_incr_style: constant
      lr_decay_style: constant
      lr_decay_iters: null
      lr_warmup_iters: 13
      lr_warmup_init: 5.0e-8
    distributed_data_parallel_config:
      grad_reduce_in_fp32: false
      overlap_grad_reduce: true
      overlap_param_gather: true
      average_in_collective: true
      use_custom_fsdp: false
      data_parallel_sharding_strategy: optim_grads_params
  dynamic_batching: {enabled: false}
  sequence_packing:
    enabled: false
    train_mb_tokens: "${mul:${policy.max_total_sequence_length},1}"
    algorithm: modified_first_fit_decreasing
    sequence_length_round: 64
  make_sequence_length_divisible_by: "${policy.megatron_cfg.tensor_model_parallel_size}"
  max_grad_norm: 1.0
  optimizer: null
  scheduler: null
  generation:
    backend: megatron
    max_new_tokens: "${policy.max_total_sequence_length}"
    temperature: 1.0
    top_p: 1.0
    top_k: null
    stop_token_ids: null
    stop_strings: null
    mcore_generation_config: {buffer_size_gb: 20}
    vllm_cfg: {async_engine: false, precision: "${policy.precision}"}
    colocated: {enabled: true, resources: {gpus_per_node: null, num_nodes: null}}
data:
  max_input_seq_length: "${policy.max_total_sequence_length}"
  prompt_file: examples/prompts/cot.txt
  system_prompt_file: null
  shuffle: true
  num_workers: 1
  dataset_name: OpenMathInstruct-2
env:
  math: {num_workers: 8}
logger:
  log_dir: logs
  num_val_samples_to_print: 0
  wandb_enabled: false
  tensorboard_enabled: true
  mlflow_enabled: false
  swanlab_enabled: false
  monitor_gpus: true
  wandb: {project: grpo-dev, name: run}
  swanlab: {project: grpo-dev, name: run}
  tensorboard: {}
  mlflow: {experiment_name: grpo-dev, run_name: run}
  gpu_monitoring: {collection_interval: 10, flush_interval: 10}
cluster: {gpus_per_node: 8, num_nodes: 2}
"""


def nemo_rl_style() -> dict:
    return resolve_references(parse_yaml(NEMO_RL_STYLE, "test"))


def test_a_nemo_rl_recipe_is_read_and_its_settings_arrive() -> None:
    config = GRPOMasterConfig.from_mapping(nemo_rl_style())
    assert config.policy.optimizer.kwargs.lr == 5e-7
    assert config.policy.optimizer.kwargs.betas == (0.9, 0.999)
    kinds = [phase.kind for phase in config.policy.scheduler or []]
    assert kinds == ["LinearLR", "ConstantLR", ""]
    assert config.policy.megatron_cfg.overlap_param_gather is True
    assert config.parallel_dims.dp == 2
    assert config.max_prompt_length == 4095
    assert GRPOMasterConfig.from_mapping(config.to_dict()) == config


def test_what_this_version_lacks_is_refused_all_at_once() -> None:
    recipe = nemo_rl_style()
    recipe["policy"]["dynamic_batching"] = {"enabled": True}
    recipe["policy"]["sequence_packing"]["enabled"] = True
    with pytest.raises(ConfigurationError) as error:
        GRPOMasterConfig.from_mapping(recipe)
    assert str(error.value).startswith("2 problems:")
    assert "policy.dynamic_batching.enabled=True is not" in str(error.value)
    assert "policy.sequence_packing.enabled=True is not available" in str(error.value)


def test_defaults_of_the_reference() -> None:
    section, loss = GRPOConfig(), ClippedPGLossConfig()
    assert (section.num_prompts_per_step, section.num_generations_per_prompt) == (
        32,
        16,
    )
    assert (section.max_num_steps, section.max_num_epochs) == (1000, 1)
    assert section.normalize_rewards and section.use_leave_one_out_baseline
    assert (section.val_period, section.val_at_start) == (10, False)
    assert (section.max_val_samples, section.seed) == (256, 42)
    assert (loss.ratio_clip_min, loss.ratio_clip_max) == (0.2, 0.2)
    assert loss.reference_policy_kl_penalty == 0.01


def test_batch_follows_prompts_times_responses_unless_given() -> None:
    def batch(policy: dict, **grpo: int) -> int:
        mapping = {"policy": {"model_name": "m", **policy}, "grpo": grpo}
        config = GRPOMasterConfig.from_mapping(mapping)
        assert config.samples_per_step % config.policy.train_global_batch_size == 0
        return config.policy.train_global_batch_size

    assert batch({}) == 512
    assert batch({}, num_prompts_per_step=4) == 64
    assert batch({}, num_prompts_per_step=4, num_generations_per_prompt=8) == 32
    given = {"train_global_batch_size": 32}
    assert batch(given, num_prompts_per_step=8, num_generations_per_prompt=8) == 32


def test_a_wrong_size_is_reported_as_such() -> None:
    with pytest.raises(
        ConfigurationError, match="^grpo.num_prompts_per_step='x': expec"
    ):
        GRPOMasterConfig.from_mapping(
            {"policy": {"model_name": "m"}, "grpo": {"num_prompts_per_step": "x"}}
        )


def test_one_response_cannot_be_compared() -> None:
    with pytest.raises(ConfigurationError, match="raise it to at least 2"):
        GRPOConfig(num_generations_per_prompt=1)
    alone = {"name": "reinforce_plus_plus", "minus_baseline": False}
    section = GRPOConfig(num_generations_per_prompt=1, adv_estimator=alone)
    assert section.num_generations_per_prompt == 1
    with pytest.raises(ConfigurationError, match="without dynamic sampling"):
        section.merged({"use_dynamic_sampling": True})


def test_the_seeds_invalid_recipe_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="policy.model_name='' is empty"):
        GRPOMasterConfig.from_mapping({"policy": {"model_name": ""}})


def recipe(**sections) -> GRPOMasterConfig:
    return GRPOMasterConfig.from_mapping({"policy": {"model_name": "m"}, **sections})


def test_an_estimator_by_its_name_or_as_nemo_rl_writes_it() -> None:
    assert GRPOConfig(adv_estimator="rloo").adv_estimator.name == "rloo"
    options = {
        "name": "reinforce_plus_plus",
        "minus_baseline": False,
        "normalize_rewards": False,
        "use_leave_one_out_baseline": False,
    }
    section = GRPOConfig(adv_estimator=options)
    assert section.adv_estimator.minus_baseline is False
    assert (section.normalize_rewards, section.use_leave_one_out_baseline) == (
        False,
        False,
    )
    assert GRPOConfig.from_mapping(section.to_dict()) == section
    with pytest.raises(ConfigurationError, match="contradicts normalize_rewards=True"):
        GRPOConfig(adv_estimator=options, normalize_rewards=True)
    with pytest.raises(ConfigurationError, match="adv_estimator.minus_base is not a"):
        GRPOConfig(adv_estimator={"minus_base": True})


def test_more_prompts_are_sampled_only_where_some_are_left_out() -> None:
    with pytest.raises(ConfigurationError, match="use_dynamic_sampling=true"):
        GRPOConfig(batch_multiplier=2)
    section = GRPOConfig(
        batch_multiplier=1.6, use_dynamic_sampling=True, num_prompts_per_step=5
    )
    assert section.prompts_per_batch == 8


def test_the_longest_response_is_that_of_generation() -> None:
    shaping = {"enabled": True, "overlong_buffer_length": 16}
    config = recipe(grpo={"reward_shaping": shaping})
    longest = config.policy.generation.max_new_tokens
    assert config.grpo.reward_shaping.max_response_length == longest
    assert GRPOMasterConfig.from_mapping(config.to_dict()) == config
    assert recipe().grpo.reward_shaping.max_response_length is None
    with pytest.raises(ConfigurationError, match="overlong_buffer_length=1000 exceeds"):
        recipe(
            grpo={"reward_shaping": {"enabled": True, "overlong_buffer_length": 1000}}
        )
