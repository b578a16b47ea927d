"""Problems of a task: made in their own process, each in one split."""

from __future__ import annotations

import pytest

from nemo_rl.data.datasets.reasoning_gym import ReasoningGymDataset, make_items
from nemo_rl.utils.exceptions import ConfigurationError, DataError

SMALL = {"max_terms": 2, "max_digits": 1}


def test_a_small_task_has_each_problem_in_one_split():
    options = {"num_validation": 50, "size": 300, "config": SMALL}
    train = ReasoningGymDataset("train", **options)
    prompts = [train[i]["prompt"] for i in range(len(train))]
    items = make_items("chain_sum", SMALL, 0, 50)
    held_out = [item["question"] for item in items]
    assert len(prompts) == len(set(prompts)) == 150 and len(set(held_out)) == 50
    assert not any(p.startswith(q) for p in prompts for q in held_out)
    row = train[3]
    assert row["prompt"].endswith("</answer>.")
    assert row["problem"] | {"index": 0} == {
        "task": "chain_sum",
        "config": SMALL,
        "seed": 0,
        "index": 0,
    }


def test_streams_go_on_beyond_a_tasks_own_size():
    # These problems are a fixed number per seed.
    items = make_items("list_functions", {"size": 3}, 0, 8)
    assert [item["index"] for item in items] == sorted({i["index"] for i in items})
    assert len(items) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "chain_smu"}, "no task 'chain_smu'. Did you mean chain_sum"),
        ({"config": {"terms": 2}}, "chain_sum.*unexpected keyword argument 'terms'"),
    ],
)
def test_tasks_and_settings_that_are_not(options, message):
    with pytest.raises(ConfigurationError, match=message):
        make_items(options.pop("task", "chain_sum"), options.pop("config", {}), 0, 1)


def test_too_many_held_out():
    with pytest.raises(DataError, match="has only 200 different problems"):
        ReasoningGymDataset("train", num_validation=200, size=1, config=SMALL)
