"""Tests of a trainer laid under stages, with a class that has a trainer's methods."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from nemo_rl.api.functional import load_recipe
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.launch.rehearsal.staged import Staged, alone, check_first, check_resumed
from nemo_rl.launch.rehearsal.stages import Stages
from nemo_rl.utils.exceptions import DataError, TrainingError

RECIPES = Path(__file__).parents[4] / "recipes"


class Rows:
    """Two rows, and data enough for one step of two of them."""

    def __init__(self, answers):
        self.answers = answers

    def __len__(self):
        return len(self.answers)

    def steps_per_epoch(self, rows):
        if rows > len(self):
            raise DataError(f"a step takes {rows}")
        return len(self) // rows

    def rows(self, indices):
        count = len(list(indices))
        messages = [[{"role": "user", "content": "?"}] for _ in range(count)]
        return BatchedDataDict(
            {
                "messages": messages,
                "answer": self.answers[:count],
                **{key: [None] * count for key in ("prompt", "row", "task_name")},
            }
        )


class Boxed:
    """Scores what is boxed."""

    def step(self, talks, facts):
        right = [
            talk[-1]["content"] == f"\\boxed{{{fact['answer']}}}"
            for talk, fact in zip(talks, facts, strict=True)
        ]
        return SimpleNamespace(rewards=right)


class Words(list):
    """A tokenizer of three words."""

    chat_template = None

    def __init__(self):
        super().__init__(["a", "b", "c"])


class Trainer:
    """The part of a trainer that brings up data and environment."""

    answers: tuple = ("4", "6")
    tokenizer = Words()

    def setup_inputs(self):
        self._setup_data()

    def _setup_data(self):
        self.data = Rows(list(self.answers))
        self._setup_environment()

    def _setup_environment(self):
        self.environment = Boxed()


def staged(told, *, full_rows=2, **attributes):
    stages = Stages(told.append)
    given = {"stages": stages, "full_rows": full_rows, **attributes}
    return type("Trainer", (Staged, Trainer), given)()


def test_every_part_is_a_stage_and_the_expected_answers_are_scored():
    told = []
    trainer = staged(told)
    trainer.setup_inputs()
    names = [each["on"] for each in told if "on" in each]
    assert names == ["tokenizer", "data", "environment", "environment"]
    said = {each["done"]: each["detail"] for each in told if "done" in each}
    assert said["tokenizer"] == "3 tokens, no chat template"
    assert said["data"] == "2 rows, 1 step an epoch at the recipe's size"
    assert said["environment"].endswith("answers: as they stand 0, boxed 1")


def test_a_second_start_is_reported_as_a_whole():
    told = []
    trainer = staged(told)
    with trainer.stages.whole("resume"):
        trainer.setup_inputs()
    assert {each.get("on") for each in told} == {"resume"}


def test_answers_that_never_score_are_told_and_objects_are_not_tried():
    class Never(Trainer):
        def _setup_environment(self):
            step = lambda talks, facts: SimpleNamespace(rewards=[0.0] * len(talks))  # noqa: E731
            self.environment = SimpleNamespace(step=step)

    given = {"stages": Stages(lambda said: None), "full_rows": 1}
    trainer = type("Trainer", (Staged, Never), given)()
    trainer.setup_inputs()
    assert "does the reward want another form?" in trainer.scores
    tests = staged([], answers=({"tests": []}, {"tests": []}))
    tests.setup_inputs()
    assert tests.scores == ""


def test_rows_must_fill_a_step_at_full_size():
    trainer = staged([], full_rows=3)
    with pytest.raises(DataError, match="a step takes 3"):
        trainer.setup_inputs()
    assert trainer.stages.failed == "data"


def test_what_must_hold_after_a_rehearsal():
    def came_to(steps, grad_norm):
        history = [{"step": steps, "loss": 0.0, "grad_norm": grad_norm}]
        return SimpleNamespace(steps=steps, history=history, status="stopped")

    check_first(came_to(2, 1.0))
    with pytest.raises(TrainingError, match="grad_norm=inf in step 2"):
        check_first(came_to(2, float("inf")))
    with pytest.raises(TrainingError, match="after step 1 of 2, status 'stopped'"):
        check_first(came_to(1, 1.0))
    saving = SimpleNamespace(checkpointing=SimpleNamespace(checkpoint_dir="there"))
    trainer = SimpleNamespace(config=saving)
    check_resumed(trainer, SimpleNamespace(history=[{"step": 3}]))
    with pytest.raises(TrainingError, match="step 1, not with 3.*there was not used"):
        check_resumed(trainer, SimpleNamespace(history=[{"step": 1}]))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), False),
        (("cluster.cpu_workers_per_node=1",), True),
        (
            ("cluster.cpu_workers_per_node=1", "policy.generation.backend=vllm"),
            False,
        ),
    ],
)
def test_when_no_other_process_is_needed(overrides, expected):
    config = load_recipe(RECIPES / "grpo_smollm2_cpu.yaml", overrides)
    assert alone(config) is expected
