"""evaluate() with a policy that answers "7" and nothing in turn; files and refusals.

Not covered here: real workers, see tests/functional/test_evals.py.
"""

from __future__ import annotations

import json

import pytest
import torch

from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn
from nemo_rl.evals import evaluate
from nemo_rl.utils.exceptions import ConfigurationError, DataError, RewardError
from tests.fakes import models
from tests.fakes.policies import OneWordPolicy
from tests.fakes.tokenizers import character_tokenizer

ROWS = [{"prompt": f"{n} + {m} =", "answer": str(n + m)} for n, m in ((3, 4), (1, 1))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    models.tiny_config("llama", vocab=102).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


def seven() -> OneWordPolicy:
    return OneWordPolicy(character_tokenizer()("7")["input_ids"])


def ask(model, **keywords):
    given = {
        "dataset": ROWS,
        "env": {"name": "exact_match"},
        "with_policy": seven(),
        "max_new_tokens": 8,
        **keywords,
    }
    return evaluate(model, **given)


def test_numbers_and_files(model, tmp_path) -> None:
    result = ask(model, num_samples=4, batch_size=1, output=tmp_path / "out")
    # The policy answers "7", "", "7", "" to each: half of the first are right.
    assert result["pass@1"] == 0.25 and result["reward"] == 0.25
    assert result["pass@4"] == 0.5 and result.metrics["pass@4"].method == "wilson"
    assert result["cons@4"] == 0.5  # nobody votes for nothing
    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(row["idx"], row["sample"]) for row in rows] == [
        (idx, sample) for idx in (0, 1) for sample in range(4)
    ]
    assert rows[0]["response"] == "7" and rows[0]["right"] and rows[0]["reward"] == 1.0
    assert rows[0]["answer"] == "7" and rows[1]["vote"] is None
    assert rows[0]["response_ids"] == [*seven().answer, 2]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["metrics"]["pass@1"]["value"] == 0.25
    assert summary["facts"]["num_prompts"] == 2
    page = (tmp_path / "out" / "report.md").read_text()
    assert "| pass@4 | 0.5000 |" in page and "## Wrong: row 0, answer 1" in page


def test_greedy_asks_once_and_tells_how_far_it_is(model) -> None:
    policy, told = seven(), []
    result = ask(
        model,
        greedy=True,
        with_policy=policy,
        progress=lambda done, total: told.append((done, total)),
        batch_size=1,
    )
    assert policy.greedy == [True, True] and not policy.ended
    assert told == [(0, 2), (1, 2), (2, 2)]
    assert result["pass@1"] == 0.5 and result.facts["temperature"] == 0.0


def test_own_reward_threshold_and_limit(model) -> None:
    result = ask(
        model,
        env={},
        reward_fn=lambda prompt, response: 0.6 if response else 0.1,
        threshold=0.5,
        max_prompts=1,
        num_samples=2,
    )
    assert result["reward"] == pytest.approx(0.35) and result["pass@1"] == 0.5
    assert result.facts["num_prompts"] == 1


def test_a_reward_by_name_is_looked_for_beside_the_caller(model, tmp_path) -> None:
    code = "def score(prompt, response):\n    return 0.25 * len(response)\n"
    (tmp_path / "eval_rewards.py").write_text(code)
    name = "eval_rewards.py:score"
    result = ask(model, env={}, reward_fn=name, recipe_dir=tmp_path, num_samples=2)
    assert result["reward"] == 0.125


def test_data_by_name_is_its_validation_split(model, caplog) -> None:
    result = ask(
        model,
        dataset="reverse_digits",
        dataset_kwargs={"num_validation": 3},
        env={},
    )
    assert result.facts["num_prompts"] == 3
    assert result.facts["dataset"] == "reverse_digits"
    assert "training prompts too" not in caplog.text


class Parity(EnvironmentInterface):
    """Reads out whether a number is odd; the first answer says nothing."""

    def step(self, message_log_batch, metadata):
        said = [log[-1]["content"] for log in message_log_batch]
        rewards = torch.tensor([float(text == "7") for text in said])
        answers = [None, *["odd" if text else "even" for text in said[1:]]]
        nothing = [None] * len(said)
        return EnvironmentReturn([], nothing, nothing, rewards, rewards == 0, answers)


def test_what_the_environment_reads_out_votes(model) -> None:
    result = ask(model, env={}, reward_fn=Parity(), num_samples=4, max_prompts=1)
    assert [row["vote"] for row in result.answers] == [None, "even", "odd", "even"]
    assert (result["pass@1"], result["cons@4"]) == (0.5, 0.0)


class TwoTurns(EnvironmentInterface):
    """Asks again once, and gives half a point each time."""

    ended = False

    def step(self, message_log_batch, metadata):
        rows = len(message_log_batch)
        over = [sum(m["role"] == "assistant" for m in t) > 1 for t in message_log_batch]
        return EnvironmentReturn(
            [{"role": "user", "content": "again"}] * rows,
            [None] * rows,
            [None] * rows,
            torch.full((rows,), 0.5),
            torch.tensor(over),
            ["read"] * rows,
        )

    def shutdown(self):
        self.ended = True


def test_several_turns_with_an_environment_that_is_ended(model) -> None:
    environment = TwoTurns()
    result = ask(model, env={}, reward_fn=environment, max_turns=3)
    assert result["pass@1"] == 1.0 and environment.ended
    (row, *_) = result.answers
    assert row["num_turns"] == 2 and row["vote"] == row["response"]
    assert ask(model, env={}, reward_fn=TwoTurns())["pass@1"] == 0.0


def test_lengths_are_the_models_unless_given(model) -> None:
    with pytest.raises(ConfigurationError, match="max_new_tokens=300 exceeds"):
        ask(model, max_new_tokens=300)  # the model has 256 positions
    with pytest.raises(DataError, match="the longest allowed is 4"):
        ask(model, max_new_tokens=8, max_total_sequence_length=12)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"dataset": None}, "No dataset"),
        ({"env": {}}, "Nothing scores the responses"),
        ({"num_sample": 2}, "Did you mean num_samples"),
        ({"checkpointing": {"enabled": False}}, "is a section of training"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    model, tmp_path, keywords, message
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ask(model, output=tmp_path / "out", **keywords)
    assert not (tmp_path / "out").exists()


def test_a_reward_that_fails_is_blamed(model) -> None:
    with pytest.raises(RewardError, match="returned None"):
        ask(model, env={}, reward_fn=lambda prompt, response: None)
