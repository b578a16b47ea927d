"""Where the answer of a response is looked for, and what equals what."""

from __future__ import annotations

import pytest

from nemo_rl.environments.math_grading import extract_answer, grade


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}} of 3", r"\frac{1}{2}"),
        ("#### 1,024\nor 7", "1,024"),
        (r"#### 5 \boxed{6} <answer>7</answer>", "6"),
        ("<answer>7</answer> #### 5", "5"),
        ("<answer> 1 </answer><answer>\n2 </answer> 3", "2"),
        ("first 3, then -4.5.", "-4.5"),
        ("1,234,567 apples", "1,234,567"),
        ("a half is 1/2", "1/2"),
        (r"cut off \boxed{42", None),
        ("no idea", None),
    ],
)
def test_the_order_in_which_answers_are_found(response, answer):
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "reference", "score"),
    [
        (r"\boxed{1,024}", "1024", 1.0),
        (r"\boxed{\$5.00}", "5", 1.0),
        (r"\boxed{\dfrac{1}{2}}", "0.5", 1.0),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", 1.0),
        (r"\boxed{ (1,2) }", "(1, 2)", 1.0),
        ("so 72", "48/2 = 24, 48+24 = 72\n#### 72", 1.0),
        (r"\boxed{Paris}", "Paris", 1.0),
        (r"\boxed{41}", "42", 0.0),
        (r"\boxed{(2,1)}", "(1,2)", 0.0),
        ("", "42", 0.0),
    ],
)
def test_grades(response, reference, score):
    assert grade(response, reference)[0] == score
