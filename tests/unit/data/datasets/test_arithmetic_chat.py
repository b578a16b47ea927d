"""Sums to learn from: right steps, right and wrong values, the splits of arithmetic."""

import pytest

from nemo_rl.data.datasets import load_dataset
from nemo_rl.data.datasets.arithmetic_chat import steps


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"num_terms": 4, "ops": "+-*", "size": 200, "digits": 2}, {"worked": False}],
)
def test_conversations_end_with_the_right_value(kwargs):
    rows = load_dataset("arithmetic_chat", **kwargs)
    for i in range(len(rows)):
        system, question, answer = rows[i]["messages"]
        assert (system["role"], question["role"]) == ("system", "user")
        assert answer["role"] == "assistant"
        # The expressions are our own: digits, spaces and operators.
        value = eval(question["content"].removesuffix("="))
        written = answer["content"].split(" = ")
        assert {eval(step) for step in written} == {value}
        assert written[-1] == rows[i]["answer"] == str(value)
        assert kwargs.get("worked", True) or len(written) == 1


def test_every_operation_is_a_step():
    assert steps("5 + 2 =") == "7"
    assert steps("2 - 3 * 4 * 2 - 1 =") == (
        "2 - 12 * 2 - 1 = 2 - 24 - 1 = -22 - 1 = -23"
    )


@pytest.mark.parametrize("kwargs", [{}, {"num_terms": 3, "ops": "+-*", "size": 100}])
def test_pairs_are_a_right_and_a_wrong_value(kwargs):
    rows = load_dataset("arithmetic_preferences", **kwargs)
    for i in range(len(rows)):
        value = eval(rows[i]["prompt"][-1]["content"].removesuffix("="))
        assert rows[i]["chosen"] == str(value)
        assert 1 <= abs(int(rows[i]["rejected"]) - value) <= 9
    again = load_dataset("arithmetic_preferences", **{**kwargs, "size": 50})
    assert [again[i] for i in range(50)] == [rows[i] for i in range(50)]


@pytest.mark.parametrize("name", ["arithmetic_chat", "arithmetic_preferences"])
def test_the_splits_share_no_question(name):
    def questions(split):
        rows = load_dataset(name, split=split)
        key = "messages" if name == "arithmetic_chat" else "prompt"
        return {rows[i][key][1]["content"] for i in range(len(rows))}

    train, held_out = questions("train"), questions("validation")
    assert (len(train), len(held_out)) == (151, 48) and not train & held_out
