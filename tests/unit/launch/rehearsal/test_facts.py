"""Tests of what is said of a recipe and of folders."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nemo_rl.api.functional import load_recipe
from nemo_rl.launch.rehearsal import facts
from nemo_rl.utils.exceptions import ConfigurationError

RECIPES = Path(__file__).parents[4] / "recipes"


def test_sizes_of_a_recipe():
    config = load_recipe(RECIPES / "grpo_llama8b.yaml")
    assert facts.sizes(config) == "grpo, 2 nodes x 8 GPUs, tp4 pp2 dp2"
    config = load_recipe(RECIPES / "eval_smollm2_cpu.yaml")
    assert facts.sizes(config) == "eval, 1 node x 2 CPU processes, dp2"


def test_versions_of_what_is_installed():
    assert facts.versions("pydantic", "no-such-thing").startswith("pydantic 2.")


def test_what_a_recipe_needs_is_asked_for_before_anything_else(monkeypatch):
    facts.require_all(load_recipe(RECIPES / "grpo_llama8b.yaml"))
    facts.require_all(load_recipe(RECIPES / "eval_smollm2_cpu.yaml"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    wanted = load_recipe(RECIPES / "grpo_llama8b.yaml", ["logger.wandb_enabled=true"])
    with pytest.raises(ConfigurationError, match="set logger.wandb_enabled to false"):
        facts.require_all(wanted)


def test_size_of_a_folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(b"0" * 2_000_000)
    assert facts.size_of(tmp_path) == f"{tmp_path.name}, 2 MB"
