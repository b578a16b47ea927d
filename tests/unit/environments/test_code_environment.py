"""Code blocks against tests, in the sandbox."""

from __future__ import annotations

import pytest

from nemo_rl.environments.code_environment import CodeEnvironment, extract_code
from nemo_rl.utils.exceptions import RewardError
from tests.unit.environments.test_sandbox import refused

DOUBLE = "Sure:\n```python\ndef double(x):\n    return x * 2\n```\nDone."
WRONG = "```\ndef double(x):\n    return 4\n```"
EXIT = "```python\nimport os\nos._exit(0)\n```"
TESTS = ["assert double(2) == 4", "assert double(3) == 6"]


def scored(responses, row, **config):
    config = {"timeout_s": 10, "network": "allow" if refused() else "none", **config}
    return CodeEnvironment(config).step(
        [[{"role": "assistant", "content": text}] for text in responses],
        [{"row": row}] * len(responses),
    )


def test_all_tests_or_their_fraction():
    responses = [DOUBLE, WRONG, EXIT, "def double(x): return x * 2"]
    returned = scored(responses, {"tests": TESTS})
    assert returned.rewards.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert returned.metrics["no_code"].tolist() == [0, 0, 0, 1]
    assert returned.answers[3] is None
    partly = scored([DOUBLE, WRONG], {"tests": TESTS}, partial_credit=True)
    assert partly.rewards.tolist() == [1.0, 0.5]
    assert partly.metrics["tests_passed"].tolist() == [1.0, 0.5]


def test_input_and_output():
    tests = [{"input": "2\n3\n", "output": "5"}, {"input": "1\n1\n", "output": "2"}]
    program = "```py\nprint(int(input()) + int(input()))\n```"
    fixed = "```py\nprint(5)\nexit()\n```"
    returned = scored([program, fixed], {"tests": tests}, partial_credit=True)
    assert returned.rewards.tolist() == [1.0, 0.5]


def test_a_program_without_end():
    returned = scored(
        ["```\nimport time; time.sleep(99)\n```"], {"tests": "pass"}, timeout_s=0.5
    )
    assert returned.rewards.tolist() == [0.0]
    assert returned.metrics["timed_out"].tolist() == [1.0]


def test_the_last_block_counts():
    assert extract_code("```\na\n```\ntext\n```python\nb\n```\n") == "b\n"
    assert extract_code("```text\na\n```") is None


@pytest.mark.parametrize("tests", [None, [], [3], [{"input": "1"}], 7])
def test_rows_need_tests(tests):
    with pytest.raises(RewardError, match="field 'tests' is .* expected a list"):
        scored([DOUBLE], {"tests": tests})
