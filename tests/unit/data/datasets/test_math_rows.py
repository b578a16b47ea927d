"""Answers of published mathematics datasets, on rows of their real form."""

import pytest

from nemo_rl.data.datasets.math_rows import (
    deepscaler,
    gsm8k,
    gsm8k_solved,
    hendrycks,
    hendrycks_solved,
    last_boxed,
    openmathinstruct,
    openmathinstruct_solved,
)

GSM8K = {
    "question": "A box holds 48 pens and another half as many. How many together?",
    "answer": "The other holds 48/2 = <<48/2=24>>24 pens.\n"
    "Together 48+24 = <<48+24=72>>72.\n#### 72",
}


def test_gsm8k_without_calculator():
    assert gsm8k(GSM8K, "row 0") == {
        "prompt": GSM8K["question"],
        "answer": "72",
        "task_name": "math",
    }
    solved = gsm8k_solved(GSM8K, "row 0")
    assert [m["role"] for m in solved["messages"]] == ["user", "assistant"]
    assert solved["messages"][1]["content"] == (
        "The other holds 48/2 = 24 pens.\nTogether 48+24 = 72.\n#### 72"
    )


@pytest.mark.parametrize(
    ("end", "answer"),
    [("#### 1,234,000", "1234000"), ("####-3", "-3"), ("a #### 5 ", "5")],
)
def test_final_numbers_of_gsm8k(end, answer):
    assert (
        gsm8k({"question": "?", "answer": f"So.\n{end}"}, "row 0")["answer"] == answer
    )


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so $\boxed{5}$ and then $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"$\boxed{\text{(A) } 3}$", r"\text{(A) } 3"),
        (r"$\boxed{\{1, 2\}}$", r"\{1, 2\}"),
        (r"$\boxed 7$.", "7"),
        (r"$\boxed\pi$.", r"\pi"),
        (r"\fbox{ 12 }", "12"),
        (r"\boxed {3}", "3"),
        (r"nothing", None),
        (r"\boxed{never closed", None),
        (r"\boxed", None),
    ],
)
def test_the_last_box(solution, answer):
    assert last_boxed(solution) == answer


def test_the_other_tables():
    row = {
        "problem": "1 + 1?",
        "level": "Level 1",
        "type": "Algebra",
        "solution": r"It is $\boxed{2}$.",
    }
    expected = {"prompt": "1 + 1?", "answer": "2", "task_name": "math"}
    assert hendrycks(row, "row 0") == expected
    assert hendrycks_solved(row, "row 0")["messages"][1]["content"] == row["solution"]
    assert deepscaler({**row, "answer": "2", "solution": ""}, "row 0") == expected
    row = {
        "problem": "1 + 1?",
        "generated_solution": "Two.",
        "expected_answer": "2",
        "problem_source": "augmented_math",
    }
    assert openmathinstruct(row, "row 0") == expected
    solved = openmathinstruct_solved(row, "row 0")
    assert solved["messages"][1] == {"role": "assistant", "content": "Two."}
    assert solved["answer"] == "2"
