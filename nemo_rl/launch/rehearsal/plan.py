"""From a recipe to its rehearsal: fewer and smaller, and otherwise the same recipe.

Pure: reads no file, and knows of models only the names that stand for small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_rl.api.functional import algorithm_of
from nemo_rl.config.backends import generation_backend, training_backend
from nemo_rl.config.environment import SECTIONS
from nemo_rl.config.master import MasterConfig

STEPS = 2
"""Training steps before the checkpoint; one more follows it."""
SAMPLES = 4
"""Sequences of a step."""
TOKENS = 8
"""Longest response."""
PROCESSES = 2
"""Processes that share a model whose recipe divides it."""
FOREVER = 1_000_000


@dataclass(frozen=True)
class Plan:
    """A rehearsal.

    Attributes:
        first: the recipe that is played, as a mapping.
        second: the one that goes on from its checkpoint; None where the recipe does
            not resume, or has no checkpoints.
        differs: what they do otherwise than the recipe, a phrase each.
    """

    first: dict[str, Any]
    second: dict[str, Any] | None
    differs: tuple[str, ...]


def models_of(config: MasterConfig) -> dict[str, str]:
    """Return name -> "causal" or "score" of every model that a recipe loads."""
    found = {config.policy.model_name: "causal"}
    teacher = config.get("teacher")
    if teacher is not None:
        found[teacher.model_name] = "causal"
    for section in _environments(config.env.to_dict()):
        if section.get("reward_model"):
            found[section["reward_model"]["model_name"]] = "score"
    return found


def make_plan(
    config: MasterConfig,
    *,
    folder: Path,
    small: Mapping[str, str],
    tokenizer: str | None = None,
    vllm: bool = False,
) -> Plan:
    """Return what is played in place of a recipe.

    Args:
        config: the whole recipe, at its full size.
        folder: where it may write.
        small: name of a model -> folder of the small one in its place.
        tokenizer: folder of the recipe's own tokenizer, where it names one.
        vllm: whether vLLM runs on the CPUs of this machine.
    """
    values = config.to_dict()
    values["algorithm"] = algorithm_of(config)
    differs: list[str] = []
    _shrink_loop(values, config, differs)
    _place(values, config, differs)
    _generate(values, config, differs, vllm=vllm)
    policy = values["policy"]
    policy["model_name"] = small[config.policy.model_name]
    # They are part of the small model's config.json already.
    policy["hf_config_overrides"] = {}
    if tokenizer is not None:
        policy["tokenizer"]["name"] = tokenizer
    if values.get("teacher"):
        values["teacher"]["model_name"] = small[values["teacher"]["model_name"]]
    for section in _environments(values["env"]):
        _shrink_environment(section, small)
    _write_into(values, folder, differs)
    saving = values.get("checkpointing") or {}
    if not (saving.get("enabled") and saving["resume"]):
        return Plan(values, None, tuple(differs))
    name = values["algorithm"]
    second = {**values, name: {**values[name], "max_num_steps": STEPS + 1}}
    # Once is enough.
    values["checkpointing"] = {**saving, "export_hf": False}
    return Plan(values, second, tuple(differs))


_LOOP: dict[str, Callable[[Any], Any]] = {
    "max_num_steps": lambda value: STEPS,
    "max_num_epochs": lambda value: FOREVER,
    "max_time_s": lambda value: None,
    "val_period": lambda value: STEPS if value else 0,
    "max_val_samples": lambda value: min(value, SAMPLES),
    "val_batch_size": lambda value: min(value, SAMPLES),
    "val_batches": lambda value: 1,
    "val_global_batch_size": lambda value: min(value, SAMPLES),
    "batch_size": lambda value: SAMPLES,
    "num_generations_per_prompt": lambda value: min(value, 2),
    "max_rollout_turns": lambda value: min(value, 2),
    "batch_multiplier": lambda value: 1,
    # Of an evaluation.
    "num_samples": lambda value: min(value, 2),
    "max_turns": lambda value: min(value, 2),
    "max_prompts": lambda value: SAMPLES,
    "k": lambda value: None,
}
"""Field of an algorithm's section -> its value in a rehearsal."""


def _shrink_loop(
    values: dict[str, Any], config: MasterConfig, differs: list[str]
) -> None:
    section = values[values["algorithm"]] = config.algorithm_section.to_dict()
    section.update(
        (key, change(section[key])) for key, change in _LOOP.items() if key in section
    )
    if section.get("val_period"):
        section |= {"val_at_start": False, "val_at_end": False}
    if "num_prompts_per_step" in section:
        each = section["num_generations_per_prompt"]
        section["num_prompts_per_step"] = SAMPLES // each
    if section.get("use_dynamic_sampling"):
        section["use_dynamic_sampling"] = False
        differs.append(
            "dynamic sampling is off: the answers of random weights score alike"
        )
    policy, full = values["policy"], config.policy
    samples = getattr(config, "samples_per_step", None) or section.get("batch_size", 0)
    updates = min(2, max(1, samples // full.train_global_batch_size))
    policy["train_global_batch_size"] = SAMPLES // updates
    policy["train_micro_batch_size"] = 1
    if full.logprob_batch_size is not None:
        policy["logprob_batch_size"] = 1
    policy["generation_batch_size"] = None
    if values["algorithm"] == "eval":
        differs.append(f"{SAMPLES} prompts, {section['num_samples']} answers to each")
    else:
        differs.append(f"{STEPS} steps of {SAMPLES} sequences, and one after a resume")


def _place(values: dict[str, Any], config: MasterConfig, differs: list[str]) -> None:
    """Train on two processes where the recipe divides the model, else on one."""
    policy, dims = values["policy"], config.parallel_dims
    sizes = {"tp": dims.tp, "pp": dims.pp, "ep": dims.ep, "dp": dims.dp}
    # Copies of the model add nothing but time.
    shared = next((a for a, size in sizes.items() if size > 1 and a != "dp"), None)
    chosen = {axis: PROCESSES if axis == shared else 1 for axis in sizes}
    megatron, dtensor = policy["megatron_cfg"], policy["dtensor_cfg"]
    if training_backend(config.policy) == "megatron":
        megatron["tensor_model_parallel_size"] = chosen["tp"]
        megatron["pipeline_model_parallel_size"] = chosen["pp"]
        megatron["expert_model_parallel_size"] = chosen["ep"]
    else:
        dtensor["tensor_parallel_size"] = chosen["tp"]
    dtensor["cpu_offload"] = False
    fused = [key for key in _NEED_A_GPU if megatron[key]]
    megatron.update(dict.fromkeys(fused, False))
    if megatron["layer_spec"] == "te":
        megatron["layer_spec"] = "auto"
        fused.append("layer_spec te")
    workers = PROCESSES if shared else 1
    cluster = config.cluster
    values["cluster"] |= {
        "num_nodes": 1,
        "spare_nodes": 0,
        "gpus_per_node": 0,
        "cpu_workers_per_node": workers,
        "num_cpus_per_worker": 1,
        "container": None,
    }
    full = " ".join(f"{a}{s}" for a, s in sizes.items() if s > 1)
    here = f"{workers} processes, {shared}{PROCESSES}" if shared else "1 process"
    there = f"{cluster.world_size} {'GPUs' if cluster.use_gpus else 'processes'} {full}"
    differs.append(f"{here} on CPUs instead of {there.rstrip()}")
    if fused:
        differs.append(f"without what needs a GPU: {', '.join(fused)}")


_NEED_A_GPU = (
    "moe_permute_fusion",
    "apply_rope_fusion",
    "bias_activation_fusion",
    "gradient_accumulation_fusion",
)


def _generate(
    values: dict[str, Any], config: MasterConfig, differs: list[str], *, vllm: bool
) -> None:
    """Shorten responses, and choose what generates them here."""
    if not config.samples:
        return
    generation, full = values["policy"]["generation"], config.policy.generation
    generation["max_new_tokens"] = min(full.max_new_tokens, TOKENS)
    # Prompts may be as long as in the recipe.
    values["data"]["max_input_seq_length"] = config.max_prompt_length
    if generation_backend(config.policy) != "vllm":
        return
    apart = not full.colocated.enabled
    if vllm:
        generation["vllm_cfg"] |= {
            "tensor_parallel_size": 1,
            "pipeline_parallel_size": 1,
            "expert_parallel_size": 1,
            "enforce_eager": True,
            "max_model_len": None,
        }
        if apart:
            generation["colocated"]["resources"] = {"cpu_workers_per_node": 1}
            values["cluster"]["cpu_workers_per_node"] += 1
        where = "in one more process" if apart else "beside training"
        differs.append(f"vLLM generates on CPUs, {where}")
        return
    generation["backend"] = None
    generation["colocated"] = {"enabled": True}
    ahead = values[values["algorithm"]].get("async_grpo") or {}
    if ahead.get("enabled"):
        ahead["enabled"] = False
        differs.append("responses are not sampled ahead: that needs vLLM")
    engine = training_backend(config.policy)
    differs.append(
        f"{engine} generates: vLLM for CPUs is not installed, so its engines and the "
        "way of the weights to them are not rehearsed"
    )


def _environments(section: dict[str, Any]) -> list[dict[str, Any]]:
    """An env section and those inside it."""
    found = [section]
    for name in SECTIONS[:2]:
        for part in (section.get(name) or {}).values():
            if isinstance(part, dict):
                found += _environments(part)
    return found


def _shrink_environment(section: dict[str, Any], small: Mapping[str, str]) -> None:
    for part in (section, *(section.get(name) for name in SECTIONS[2:])):
        if isinstance(part, dict) and part.get("num_workers"):
            part["num_workers"] = 1
    if section.get("gpus_per_worker"):
        section["gpus_per_worker"] = 0.0
    if section.get("reward_model"):
        scorer = section["reward_model"]
        scorer["model_name"] = small[scorer["model_name"]]


def _write_into(values: dict[str, Any], folder: Path, differs: list[str]) -> None:
    """Put everything that is written into the rehearsal's folder."""
    if "checkpointing" not in values:
        return
    values["checkpointing"] |= {
        "checkpoint_dir": str(folder / "checkpoints"),
        "save_period": STEPS,
        "checkpoint_must_save_by": None,
    }
    logger = values["logger"]
    names = {"wandb_enabled": "Weights & Biases", "mlflow_enabled": "MLflow"}
    silent = [name for key, name in names.items() if logger[key]]
    if silent:
        differs.append(f"{' and '.join(silent)}: installed, but told nothing")
    logger |= dict.fromkeys(names, False)
    logger |= {"log_dir": str(folder / "logs"), "monitor_gpus": False}
    logger["console"] = "plain"
