"""Grading in processes: right, wrong, absent, and an answer without end."""

from __future__ import annotations

import pytest

from nemo_rl.environments.math_environment import MathEnvironment
from nemo_rl.utils.exceptions import ConfigurationError, RewardError


def test_grades_in_processes_and_survives_a_hanging_one():
    responses = [r"\boxed{0.5}", r"\boxed{3}", "none", r"\boxed{10000000000!}"]
    environment = MathEnvironment({"num_workers": 2, "timeout_s": 2.0})
    returned = environment.step(
        [[{"role": "assistant", "content": text}] for text in responses],
        [{"answer": r"\frac{1}{2}"}] * 4,
    )
    environment.shutdown()
    assert returned.rewards.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert returned.answers == ["0.5", "3", None, None]
    assert returned.metrics["grading_failed"].tolist() == [0, 0, 0, 1]
    assert returned.metrics["no_answer"].tolist() == [0, 0, 1, 0]
    assert returned.terminateds.tolist() == [True] * 4


def test_rows_need_an_answer_and_keys_are_checked():
    with pytest.raises(RewardError, match="no answer to compare with; set data.answer"):
        MathEnvironment().step([[{"content": "1"}]], [{"prompt": "q"}])
    with pytest.raises(ConfigurationError, match="Did you mean num_workers"):
        MathEnvironment({"num_wrokers": 2})
