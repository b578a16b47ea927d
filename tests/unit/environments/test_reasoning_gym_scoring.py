"""Scores of problems that are made again where they are scored."""

from __future__ import annotations

import pytest

from nemo_rl.data.datasets.reasoning_gym import make_items
from nemo_rl.environments.reasoning_gym_scoring import find_answer, score


def scored(response, *, task="chain_sum", **options):
    config = {"max_terms": 2, "max_digits": 1} if task == "chain_sum" else {}
    item = make_items(task, config, 5, 2)[1]
    problem = {"task": task, "config": config, "seed": 5, "index": item["index"]}
    how = {"partial_credit": False, "require_tags": True, **options}
    response = response.format(**item)
    return score(response, problem, item["question"] + "...", **how)[0]


def test_only_a_full_score_counts_unless_wanted():
    assert scored("<think>9</think><answer> {answer} </answer>") == 1.0
    prose = "<answer>I say {answer}, because</answer>"
    assert scored(prose) == 0.0
    assert 0 < scored(prose, partial_credit=True) < 1
    assert scored("<answer>no</answer>") == 0.0


def test_tags():
    assert scored("{answer}") == 0.0
    assert scored("{answer}", require_tags=False) == 1.0
    assert find_answer("<answer>1</answer><answer>2</answer>", True) == "2"
    assert find_answer(" ", False) is None


def test_a_row_of_another_problem_is_noticed():
    problem = {"task": "chain_sum", "config": {}, "seed": 0, "index": 0}
    with pytest.raises(RuntimeError, match="does not make the same problem twice"):
        score(
            "<answer>1</answer>",
            problem,
            "Another?",
            partial_credit=False,
            require_tags=True,
        )
