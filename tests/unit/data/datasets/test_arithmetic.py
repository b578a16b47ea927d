"""Sums: right answers, no leak, the same rows for the same seed."""

import pytest

from nemo_rl.data.datasets.arithmetic import ArithmeticDataset
from nemo_rl.utils.exceptions import DataError


def questions(**kwargs):
    dataset = ArithmeticDataset(**kwargs)
    return [dataset[i]["messages"][-1]["content"] for i in range(len(dataset))]


def test_a_row_has_one_worked_example():
    row = ArithmeticDataset()[0]
    roles = [message["role"] for message in row["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert row["messages"][0]["content"] == "Calculator."
    assert [m["content"] for m in row["messages"][1:3]] == ["5 + 2 =", "7"]
    assert row["task_name"] == "arithmetic"


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"num_terms": 3, "ops": "+-*", "size": 500}, {"digits": 5, "size": 50}],
)
def test_answers_are_right(kwargs):
    dataset = ArithmeticDataset(**kwargs)
    for i in range(len(dataset)):
        question = dataset[i]["messages"][-1]["content"]
        # The expression is our own: digits, spaces and operators.
        assert str(eval(question.removesuffix("="))) == dataset[i]["answer"]


@pytest.mark.parametrize("seed", range(5))
def test_the_splits_share_nothing_and_miss_only_the_example(seed):
    train = questions(seed=seed)
    held_out = questions(seed=seed, split="validation")
    assert (len(train), len(held_out)) == (151, 48)
    assert len({*train, *held_out}) == 199 and "5 + 2 =" not in {*train, *held_out}


def test_neither_size_nor_order_lets_a_row_change_sides():
    held_out = set(questions(split="validation"))
    assert not held_out & set(questions(size=20))
    assert questions(split="validation", size=5) == questions(split="validation")[:5]
    big = {"num_terms": 4, "digits": 3, "num_validation": 100}
    assert not set(questions(**big, split="validation")) & set(
        questions(**big, size=2000)
    )


def test_a_seed_decides_everything():
    assert questions(seed=3) == questions(seed=3) != questions(seed=4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_terms": 1}, "at least 2 terms"),
        ({"ops": "+/"}, "expected some of"),
        ({"ops": "++"}, "each once"),
        ({"split": "trian"}, "Did you mean train"),
        ({"num_validation": 199}, "leaves nothing for training"),
        ({"size": 0}, "at least 1 row"),
    ],
)
def test_impossible_numbers_are_refused(kwargs, message):
    with pytest.raises(DataError, match=message):
        ArithmeticDataset(**kwargs)
