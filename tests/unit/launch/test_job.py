"""Tests of nemo_rl.launch.job: what is refused before the queue."""

from __future__ import annotations

import json

import pytest

from nemo_rl.launch.job import find_recipe, make_job
from nemo_rl.launch.site import Site, load_site, root_dir
from nemo_rl.utils.exceptions import ConfigurationError, LaunchError

ROOT = root_dir()
GENERIC = load_site("generic", ROOT)
LLAMA = ROOT / "recipes" / "grpo_llama8b.yaml"
CPU = ROOT / "recipes" / "grpo_smollm2_cpu.yaml"


def test_a_recipe_becomes_a_job():
    spec, config = make_job(LLAMA, ["cluster.num_nodes=4"], root=ROOT, site=GENERIC)
    assert (spec.name, spec.recipe) == ("grpo_llama8b", "recipes/grpo_llama8b.yaml")
    assert (spec.nodes, spec.gpus_per_node, spec.time) == (4, 8, "04:00:00")
    assert spec.overrides == ("cluster.num_nodes=4",)
    assert spec.title.startswith("GRPO, Llama-3.1-8B-Instruct")
    assert config.cluster.world_size == 32


def test_spare_nodes_are_allocated_too():
    spares = ["cluster.num_nodes=4", "cluster.spare_nodes=2"]
    spec, config = make_job(LLAMA, spares, root=ROOT, site=GENERIC)
    assert (spec.nodes, config.cluster.world_size) == (6, 32)


def test_a_shared_machine_gives_the_workers_cpus_and_two_more():
    shared = ["cluster.exclusive=false", "cluster.cpu_workers_per_node=4"]
    spec, _ = make_job(CPU, shared, root=ROOT, site=GENERIC)
    assert (spec.cpus_per_node, spec.memory_per_node) == (6, None)
    sizes = ["cluster.cpus_per_node=8", "cluster.memory_per_node=24G"]
    spec, _ = make_job(CPU, [*shared, *sizes], root=ROOT, site=GENERIC)
    assert (spec.cpus_per_node, spec.memory_per_node) == (8, "24G")
    spec, _ = make_job(CPU, [], root=ROOT, site=GENERIC)
    assert spec.cpus_per_node is None


def test_find_recipe_by_name_path_and_not_at_all():
    assert find_recipe("grpo_llama8b", ROOT) == LLAMA
    assert find_recipe(str(LLAMA), ROOT) == LLAMA
    with pytest.raises(LaunchError, match=r"which recipe\? .*grpo_smollm2_cpu"):
        find_recipe(None, ROOT)
    with pytest.raises(LaunchError, match="Did you mean grpo_llama8b"):
        find_recipe("grpo_lama8b", ROOT)


def test_sizes_that_do_not_divide_are_refused():
    wrong = ["policy.megatron_cfg.tensor_model_parallel_size=3"]
    with pytest.raises(ConfigurationError, match="does not divide the world size 16"):
        make_job(LLAMA, wrong, root=ROOT, site=GENERIC)


def test_the_models_shape_is_checked_where_its_config_is_at_hand(tmp_path):
    shape = {
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "num_hidden_layers": 4,
        "intermediate_size": 96,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "tokenizer.json").touch()
    overrides = [
        f"policy.model_name={tmp_path}",
        "policy.megatron_cfg.tensor_model_parallel_size=2",
    ]
    with pytest.raises(ConfigurationError, match="9 attention heads and 3 key-value"):
        make_job(CPU, overrides, root=ROOT, site=GENERIC)


def test_more_gpus_than_the_site_has():
    site = Site("small", {"NEMO_RL_GPUS_PER_NODE": "4"})
    with pytest.raises(LaunchError, match="gpus_per_node=8, but a node of site small"):
        make_job(LLAMA, [], root=ROOT, site=site)


def test_local_is_one_machine():
    site = Site("local", {})
    with pytest.raises(LaunchError, match="num_nodes=2, but site local"):
        make_job(LLAMA, [], root=ROOT, site=site)


def test_a_job_name_is_also_a_folder_name():
    with pytest.raises(LaunchError, match="use letters, digits"):
        make_job(CPU, ["cluster.job_name=../x"], root=ROOT, site=GENERIC)


def test_run_dir_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path.relative_to(tmp_path) / "run"
    spec, _ = make_job(CPU, [], root=ROOT, site=GENERIC, run_dir=place)
    assert spec.run_dir == str(tmp_path / "run")
    outside = tmp_path / "mine.yaml"
    outside.write_text(f"defaults: {CPU}\n")
    spec, _ = make_job(outside, [], root=ROOT, site=GENERIC)
    assert spec.recipe == str(outside)
    assert spec.title == ""
