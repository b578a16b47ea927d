"""An evaluation as the launcher runs it, with a policy that answers "7" and nothing."""

from __future__ import annotations

import json

import yaml

from nemo_rl.api.functional import create_trainer, load_recipe
from nemo_rl.evals.recipe import EvalRun
from nemo_rl.launch.runs.folder import RunFolder
from tests.fakes import models
from tests.fakes.policies import OneWordPolicy
from tests.fakes.tokenizers import character_tokenizer


def test_a_recipe_is_evaluated_into_its_run_folder(tmp_path) -> None:
    model = tmp_path / "llama"
    models.tiny_config("llama", vocab=102).save_pretrained(model)
    character_tokenizer().save_pretrained(model)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "3 + 4 =", "answer": "7"}\n')
    recipe = tmp_path / "recipe.yaml"
    mapping = {
        "algorithm": "eval",
        "policy": {"model_name": str(model), "generation": {"max_new_tokens": 8}},
        "data": {"dataset_name": str(rows)},
        "env": {"name": "exact_match"},
        "eval": {"num_samples": 2},
        "cluster": {"gpus_per_node": 0, "cpu_workers_per_node": 1},
    }
    recipe.write_text(yaml.safe_dump(mapping))
    run = create_trainer(load_recipe(recipe))
    assert isinstance(run, EvalRun)
    run.run_dir = tmp_path / "run"
    policy = OneWordPolicy(character_tokenizer()("7")["input_ids"])
    result = run.fit(with_policy=policy)
    assert (result.status, result.metrics["pass@2"]) == ("completed", 1.0)
    told = json.loads((run.run_dir / "summary.json").read_text())
    assert told["metrics"]["pass@1"]["value"] == 0.5
    assert RunFolder(run.run_dir).summary()["metrics"]["eval/pass@1"] == 0.5


def test_a_mapping_will_do() -> None:
    run = EvalRun({"policy": {"model_name": "m"}, "eval": {"num_samples": 2}})
    assert run.config.eval.ks == [1, 2]
    assert "checkpointing" not in run.config.to_dict()
