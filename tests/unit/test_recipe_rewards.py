"""The code that recipes bring along."""

import importlib.util
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("response", "answer", "reward"),
    [
        (r"So \boxed{42}.", "42", 1.0),
        (r"First \boxed{1}, then \boxed{ 1,024 }", "1024", 1.0),
        (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}", 1.0),
        (r"\boxed{(1, 2)}", "(1,2)", 1.0),
        (r"\boxed{\$5}", "5", 1.0),
        (r"\boxed{41}", "42", 0.0),
        ("The answer is 42", "42", 0.0),
        (r"unfinished \boxed{42", "42", 0.0),
        ("", "42", 0.0),
    ],
)
def test_boxed_answer(response, answer, reward):
    module = load("grpo_llama8b")
    assert module.boxed_answer("prompt", response, answer=answer) == reward
