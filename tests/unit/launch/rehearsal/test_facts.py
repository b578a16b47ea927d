"""Tests of what is said of a recipe and of folders."""

from __future__ import annotations

from pathlib import Path

from nemo_rl.api.functional import load_recipe
from nemo_rl.launch.rehearsal import facts

RECIPES = Path(__file__).parents[4] / "recipes"


def test_sizes_of_a_recipe():
    config = load_recipe(RECIPES / "grpo_llama8b.yaml")
    assert facts.sizes(config) == "grpo, 2 nodes x 8 GPUs, tp4 pp2 dp2"
    config = load_recipe(RECIPES / "eval_smollm2_cpu.yaml")
    assert facts.sizes(config) == "eval, 1 node x 2 CPU processes, dp2"


def test_versions_of_what_is_installed():
    assert facts.versions("pydantic", "no-such-thing").startswith("pydantic 2.")


def test_size_of_a_folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(b"0" * 2_000_000)
    assert facts.size_of(tmp_path) == f"{tmp_path.name}, 2 MB"
