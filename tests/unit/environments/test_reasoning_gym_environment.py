"""Rows of the data set are scored by their task, in processes."""

from __future__ import annotations

import pytest

from nemo_rl.data.datasets.registry import load_dataset
from nemo_rl.environments.factory import make_environment
from nemo_rl.utils.exceptions import RewardError


def test_rows_are_scored_by_the_task_that_made_them():
    # A task whose problems depend on the hash seed, and whose answer is a word.
    rows = load_dataset("reasoning_gym", task="ransom_note", size=2, num_validation=1)
    environment = make_environment({}, default=rows.default_environment)
    row = rows[0]
    assert row["task_name"] == "reasoning_gym:ransom_note"
    responses = [f"<answer>{row['answer']}</answer>", "<answer>no</answer>", "hm"]
    returned = environment.step(
        [[{"role": "assistant", "content": text}] for text in responses],
        [{"row": row}] * 3,
    )
    environment.shutdown()
    assert returned.rewards.tolist() == [1.0, 0.0, 0.0]
    assert returned.metrics["no_answer"].tolist() == [0, 0, 1]
    assert returned.metrics["scoring_failed"].tolist() == [0, 0, 0]


def test_other_rows_are_refused():
    environment = make_environment({"reasoning_gym": {}})
    with pytest.raises(RewardError, match="data set of that name only"):
        environment.step([[{"content": ""}]], [{"row": {"prompt": "q"}}])
