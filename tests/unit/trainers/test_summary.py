"""What a person reads about a run: its facts, before and after, changed answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from nemo_rl.config.cluster import ClusterConfig
from nemo_rl.config.data import DataConfig
from nemo_rl.config.parallel import ParallelDims
from nemo_rl.trainers.state import TrainResult
from nemo_rl.trainers.summary import run_facts, run_summary
from nemo_rl.trainers.validation import ValidationResult


def trainer(data=None, **cluster):
    config = ClusterConfig(**cluster)
    data = {"dataset_name": "arithmetic"} if data is None else data
    return SimpleNamespace(
        config=SimpleNamespace(
            cluster=config,
            policy=SimpleNamespace(model_name="my-model"),
            data=DataConfig.from_mapping(data),
            parallel_dims=ParallelDims(config.world_size, tp=2),
        ),
        data=[{}] * 9,
        logger=SimpleNamespace(log_dir=Path("logs/run")),
    )


def test_facts_of_a_run_on_gpus():
    facts = run_facts(trainer(gpus_per_node=4, num_nodes=2))
    assert facts["model"] == "my-model"
    assert facts["data"] == "arithmetic, 9 rows"
    assert facts["workers"] == "8 GPU (TP2 PP1 DP4) on 2 nodes"
    assert facts["logs"] == "logs/run"


def test_facts_of_a_run_on_one_cpu_node():
    facts = run_facts(trainer(gpus_per_node=0, cpu_workers_per_node=2))
    assert facts["workers"] == "2 CPU (TP2 PP1 DP1) on 1 node"


def test_facts_of_data_without_a_name():
    facts = run_facts(trainer({}, gpus_per_node=2))
    assert facts["data"] == "given in code, 9 rows"


def test_facts_of_a_mixture():
    mixture = [{"dataset_name": "a"}, {"dataset_name": "b"}]
    facts = run_facts(trainer({"mixture": mixture}, gpus_per_node=2))
    assert facts["data"] == "a + b, 9 rows"


def validation(*rewards, prompts=None):
    return ValidationResult(
        samples=[
            {
                "prompt": prompts[i] if prompts else f"p{i}",
                "response": f"r{reward}",
                "reward": reward,
                "answer": "a",
            }
            for i, reward in enumerate(rewards)
        ]
    )


def result(*accuracies, **fields):
    history = [{"step": i, "accuracy": a} for i, a in enumerate(accuracies)]
    return TrainResult(steps=7, validation_history=history, **fields)


def summary(outcome, first=None, last=None):
    return run_summary(outcome, first, last, elapsed_s=3.5)


def test_summary_compares_the_first_and_the_last_validation():
    found = summary(result(0.1, 0.9, 0.5, status="preempted"))
    assert (found.before, found.after) == (0.1, 0.5)
    assert (found.steps, found.status, found.elapsed_s) == (7, "preempted", 3.5)
    once = summary(result(0.1))
    assert (once.before, once.after) == (0.1, None)
    never = summary(result())
    assert (never.before, never.after) == (None, None)


def test_summary_names_where_everything_is():
    outcome = result(checkpoint_path=Path("c"), hf_export_path=Path("h"))
    paths = summary(outcome).paths
    assert paths["checkpoint"] == Path("c")
    assert paths["model (Hugging Face)"] == Path("h")
    assert paths["rollouts"] is None


def test_samples_show_one_of_each_kind_first():
    first = validation(0, 0, 1, 1, 0)
    last = validation(1, 1, 1, 0, 1)
    found = summary(result(), first, last).samples
    assert [s.prompt for s in found] == ["p0", "p2", "p3"]
    gained = found[0]
    assert (gained.before, gained.after, gained.answer) == ("r0", "r1", "a")
    assert (gained.before_reward, gained.after_reward) == (0, 1)


def test_samples_fill_up_with_more_of_what_there_is():
    found = summary(result(), validation(0, 0, 0, 0), validation(1, 1, 1, 1)).samples
    assert [s.prompt for s in found] == ["p0", "p1", "p2"]


def test_samples_of_other_prompts_are_not_compared():
    first = validation(0, 0, prompts=["x", "y"])
    last = validation(1, 1, prompts=["x", "z"])
    assert [s.prompt for s in summary(result(), first, last).samples] == ["x"]


def test_samples_need_two_validations():
    one = validation(0, 1)
    assert summary(result(), one, None).samples == []
    assert summary(result(), None, one).samples == []
    assert summary(result(), one, one).samples == []
