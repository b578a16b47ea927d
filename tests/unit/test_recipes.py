"""Recipes: each is valid, and base files list and explain every key."""

import json
import re
from pathlib import Path

import pytest
import yaml

from nemo_rl.api.functional import config_class, load_recipe
from nemo_rl.config.base import BaseConfig
from nemo_rl.config.messages import section_in
from nemo_rl.config.validation import validate_model_shape
from nemo_rl.data.module import DataModule
from tests.fakes.tokenizers import CHATML, character_tokenizer

RECIPES = Path(__file__).parents[2] / "recipes"
BASES = sorted((RECIPES / "base").glob("*.yaml"))
ALL = [*BASES, *sorted(RECIPES.glob("*.yaml"))]

# Given in one place only; the other places are for recipes from elsewhere.
SECOND_PLACES = {
    "policy.learning_rate",
    "policy.megatron_cfg.optimizer",
    "policy.megatron_cfg.scheduler",
    "policy.megatron_cfg.distributed_data_parallel_config.overlap_grad_reduce",
    "policy.megatron_cfg.distributed_data_parallel_config.overlap_param_gather",
    "dpo.reference_policy_kl_penalty",
}
# What only algorithms that sample have.
SAMPLING = ("policy.generation", "env", "policy.generation_batch_size")


def ids(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", ALL, ids=ids)
def test_recipe_is_valid(path: Path) -> None:
    config = load_recipe(path)
    assert config.recipe_dir == path.parent
    resolved = config.to_dict()
    assert type(config).from_mapping(resolved).to_dict() == resolved


@pytest.mark.parametrize("path", BASES, ids=ids)
def test_every_key_carries_a_comment(path: Path) -> None:
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s*\w+:", line):
            above = lines[number - 1].strip() if number else ""
            assert "  # " in line or above.startswith("# "), line
    assert max(map(len, lines)) <= 88


def keys(cls: type[BaseConfig], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, field in cls.model_fields.items():
        path = f"{prefix}{name}"
        unused = ("Accepted", "Not available", "Read only by the vLLM")
        if path in SECOND_PLACES or (field.description or "").startswith(unused):
            continue
        section = section_in(field.annotation)
        # A section of env chooses the environment by being there.
        whole = path in ("policy.scheduler", "data.mixture") or (
            path.startswith("env.") and field.default is None
        )
        if section is None or whole:
            found.add(path)
        else:
            found |= keys(section, f"{path}.")
    return found


def given(mapping: dict, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, value in mapping.items():
        path = f"{prefix}{name}"
        found |= (
            given(value, f"{path}.") if isinstance(value, dict) and value else {path}
        )
    return found


@pytest.mark.parametrize("path", BASES, ids=ids)
def test_every_key_is_there(path: Path) -> None:
    expected = keys(config_class(path.stem))
    if not config_class(path.stem).samples:
        expected = {key for key in expected if not key.startswith(SAMPLING)}
    if path.stem != "rm":
        expected = {key for key in expected if ".reward_model_cfg." not in key}
    assert given(yaml.safe_load(path.read_text())) == expected


@pytest.mark.parametrize("path", BASES, ids=ids)
def test_base_values_are_the_defaults(path: Path) -> None:
    cls = config_class(path.stem)
    config = load_recipe(path)
    default = cls.from_mapping(
        {
            "algorithm": path.stem,
            "policy": {"model_name": config.policy.model_name},
            **({"teacher": config.teacher.to_dict()} if "teacher" in config else {}),
        }
    )
    assert config.to_dict() == default.to_dict()


def test_the_table_names_every_recipe() -> None:
    table = (RECIPES / "README.md").read_text()
    for path in RECIPES.glob("*.yaml"):
        assert f"`{path.stem}`" in table


def test_cpu_recipe() -> None:
    config = load_recipe(RECIPES / "grpo_smollm2_cpu.yaml")
    assert (config.parallel_dims.dp, config.cluster.use_gpus) == (2, False)
    assert config.samples_per_step == config.policy.train_global_batch_size == 32
    assert config.max_prompt_length == 90
    assert config.policy.optimizer.kwargs.betas == (0.9, 0.99)


def test_llama_recipe_reads_its_data(tmp_path: Path) -> None:
    # Columns of nvidia/OpenMathInstruct-2, as its page on the hub lists them.
    row = {
        "problem": "What is 1 + 1?",
        "generated_solution": r"It is \boxed{2}.",
        "expected_answer": "2",
        "problem_source": "math",
    }
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    path = RECIPES / "grpo_llama8b.yaml"
    config = load_recipe(path, [f"data.dataset_kwargs={{path: {file}}}"])
    data = DataModule(None, character_tokenizer(CHATML), config.data)
    batch = next(data.batches(1))
    assert batch["answer"] == ["2"]
    system, question = batch["messages"][0]
    assert "boxed" in system["content"] and question["content"] == row["problem"]


def test_llama_recipe() -> None:
    config = load_recipe(RECIPES / "grpo_llama8b.yaml")
    dims = config.parallel_dims
    assert (dims.world_size, dims.tp, dims.pp, dims.dp) == (16, 4, 2, 2)
    assert config.cluster.container


# heads, key-value heads, layers, experts: from the config.json of each.
SHAPES = {
    "dpo_llama8b": (32, 8, 32, None),
    "grpo_llama70b": (64, 8, 80, None),
    "grpo_llama8b": (32, 8, 32, None),
    "grpo_qwen2.5_1.5b": (12, 2, 28, None),
    "grpo_qwen3_30b_a3b": (32, 4, 48, 128),
    "sft_llama8b": (32, 8, 32, None),
}


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_fit_the_published_shape(name: str) -> None:
    config = load_recipe(RECIPES / f"{name}.yaml")
    heads, groups, layers, experts = SHAPES[name]
    shape = {
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "num_hidden_layers": layers,
    }
    validate_model_shape(config.policy, shape | {"num_experts": experts})
    dims = config.parallel_dims
    assert layers % dims.pp == 0 and groups % dims.tp == 0
    assert experts is None or (experts % dims.ep == 0 and dims.tp == 1)
    first = (RECIPES / f"{name}.yaml").read_text().splitlines()[0]
    cluster = config.cluster
    assert f"{cluster.num_nodes} node" in first and "x 8 GPUs" in first
