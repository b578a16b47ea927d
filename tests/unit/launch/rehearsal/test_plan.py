"""Tests of the plan: small, on this machine, and otherwise the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_rl.api.functional import load_recipe, to_config
from nemo_rl.launch.rehearsal.plan import SAMPLES, STEPS, make_plan, models_of

RECIPES = Path(__file__).parents[4] / "recipes"
EVERY = sorted(RECIPES.glob("*.yaml"))
MAY_DIFFER = (
    *("algorithm", "cluster.", "logger.", "checkpointing."),
    *("policy.model_name", "policy.hf_config_overrides", "policy.megatron_cfg."),
    *("policy.train_", "policy.logprob_batch_size", "policy.generation_batch_size"),
    *("policy.generation.max_new_tokens", "data.max_input_seq_length"),
    *("grpo.", "sft.", "dpo.", "rm.", "distillation.", "eval."),
    "env.math.num_workers",
)
"""What a rehearsal may do otherwise than the recipe."""


def flat(value, path=""):
    if not isinstance(value, dict):
        return {path: value}
    return {
        key: inner
        for name, part in value.items()
        for key, inner in flat(part, f"{path}.{name}" if path else name).items()
    }


def planned(config, **options):
    small = {name: f"small-{n}" for n, name in enumerate(models_of(config))}
    return make_plan(config, folder=Path("rehearsed"), small=small, **options)


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_every_recipe_has_a_small_valid_rehearsal(path):
    config = load_recipe(path)
    plan = planned(config)
    first = to_config(plan.first, plan.first["algorithm"])
    assert first.cluster.world_size <= 2
    assert not first.cluster.use_gpus
    assert first.policy.model_name == "small-0"
    assert first.max_row_length == config.max_row_length
    before, after = flat(config.to_dict()), flat(first.to_dict())
    changed = {key for key in after if after[key] != before.get(key)}
    assert not [key for key in changed if not key.startswith(MAY_DIFFER)], changed


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_the_second_start_goes_on_and_exports(path):
    plan = planned(load_recipe(path))
    name = plan.first["algorithm"]
    if name == "eval":
        assert plan.second is None
        return
    second = to_config(plan.second, name)
    assert second.algorithm_section.max_num_steps == STEPS + 1
    assert second.checkpointing.checkpoint_dir == "rehearsed/checkpoints"
    exports = [each["checkpointing"]["export_hf"] for each in (plan.first, plan.second)]
    assert exports == [False, load_recipe(path).checkpointing.export_hf]


def recipe(name, *overrides):
    return load_recipe(RECIPES / f"{name}.yaml", overrides)


@pytest.mark.parametrize(
    ("name", "overrides", "sizes"),
    [
        ("grpo_llama8b", (), (2, 1, 1)),
        ("grpo_llama8b", ("policy.megatron_cfg.tensor_model_parallel_size=1",), (1, 2)),
        ("grpo_qwen3_30b_a3b", (), (1, 2, 1)),
        ("sft_llama8b", (), (2, 1, 1)),
        ("grpo_qwen2.5_1.5b", (), (1, 1, 1)),
        ("grpo_smollm2_cpu", (), (1, 1, 1)),
    ],
)
def test_a_model_that_is_divided_is_shared_by_two(name, overrides, sizes):
    plan = planned(recipe(name, *overrides))
    dims = to_config(plan.first, plan.first["algorithm"]).parallel_dims
    assert (dims.tp, dims.pp, dims.ep)[: len(sizes)] == sizes
    assert dims.dp == 1


def test_updates_of_a_step_stay_several():
    overrides = ("grpo.num_prompts_per_step=64", "policy.train_global_batch_size=512")
    plan = planned(recipe("grpo_llama8b", *overrides))
    assert plan.first["policy"]["train_global_batch_size"] == SAMPLES // 2


def test_what_cannot_be_rehearsed_is_said():
    vllm = "policy.generation.backend=vllm"
    ahead = (
        "policy.generation.colocated.enabled=false",
        "policy.generation.colocated.resources.num_nodes=1",
        "policy.megatron_cfg.pipeline_model_parallel_size=1",
        "grpo.async_grpo.enabled=true",
        "loss_fn.use_importance_sampling_correction=true",
        "loss_fn.truncated_importance_sampling_ratio=2.0",
    )
    config = recipe("grpo_llama8b", vllm, *ahead)
    without = planned(config)
    said = " ".join(without.differs)
    assert "vLLM for CPUs is not installed" in said
    assert "not sampled ahead" in said
    assert "layer_spec te" in said
    assert to_config(without.first, "grpo").policy.generation.backend is None
    with_vllm = planned(config, vllm=True)
    assert "vLLM generates on CPUs, in one more process" in with_vllm.differs
    played = to_config(with_vllm.first, "grpo")
    assert played.policy.generation.backend == "vllm"
    assert played.grpo.async_grpo.enabled
    assert (sum(played.layout.training), sum(played.layout.generation)) == (2, 1)
    dynamic = planned(recipe("grpo_llama8b", "grpo.use_dynamic_sampling=true"))
    assert "dynamic sampling is off" in " ".join(dynamic.differs)


def test_teachers_and_reward_models_are_small_too():
    config = load_recipe(
        RECIPES / "base" / "distillation.yaml",
        [
            "teacher.model_name=large",
            "env.multi_reward={a: {reward_model: {model_name: judge}, weight: 2}}",
            "logger.wandb_enabled=true",
        ],
    )
    assert list(models_of(config).items())[1:] == [
        ("large", "causal"),
        ("judge", "score"),
    ]
    plan = planned(config, tokenizer="elsewhere")
    assert plan.first["teacher"]["model_name"] == "small-1"
    part = plan.first["env"]["multi_reward"]["a"]
    assert part["reward_model"]["model_name"] == "small-2"
    assert plan.first["policy"]["tokenizer"]["name"] == "elsewhere"
    assert not plan.first["logger"]["wandb_enabled"]
    assert config.env.multi_reward["a"]["reward_model"]["model_name"] == "judge"
