"""CodeEnvironment: runs the code of a response against the tests of its row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from nemo_rl.config.environment import CodeEnvConfig
from nemo_rl.environments.interfaces import (
    EnvironmentInterface,
    EnvironmentReturn,
    last_turn,
)
from nemo_rl.environments.sandbox import Limits, Result, run_python
from nemo_rl.utils.exceptions import RewardError

_BLOCK = re.compile(r"^```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)^```", re.M | re.S)


def extract_code(response: str) -> str | None:
    """Return the last block between lines of three backticks, or None."""
    blocks = _BLOCK.findall(response)
    return blocks[-1] if blocks else None


class Verdict(NamedTuple):
    """What the tests say of a program."""

    passed: float
    """Fraction of the tests."""
    timed_out: bool
    """Some test did not end in time."""


class CodeEnvironment(EnvironmentInterface):
    """Rewards code that passes the tests in its row's field ``tests``.

    A test is Python that runs after the code, such as ``"assert double(2) == 4"``, or
    ``{"input": "2", "output": "4"}``: what the program reads and what it must print.
    Without ``partial_credit`` the reward is 1.0 for passing them all. Metrics:
    ``tests_passed`` (fraction), ``no_code``, ``timed_out``.

    Args:
        config: The fields of ``env.code``.
    """

    def __init__(self, config: CodeEnvConfig | Mapping[str, Any] | None = None) -> None:
        """Read the settings."""
        section = CodeEnvConfig.from_mapping(config or {})
        super().__init__(section.to_dict())
        self._partial, self._threads = section.partial_credit, section.num_workers
        self._limits = Limits(
            timeout_s=section.timeout_s,
            cpu_s=section.cpu_s,
            memory_mb=section.memory_mb,
            max_file_mb=section.max_file_mb,
            max_processes=section.max_processes,
            network=section.network == "allow",
        )

    def step(
        self,
        message_log_batch: list[list[dict[str, Any]]],
        metadata: list[dict[str, Any]],
    ) -> EnvironmentReturn:
        """Run the last message of every conversation; all are over.

        Raises:
            ConfigurationError: The kernel refuses the isolation.
            RewardError: A row has no tests.
        """
        codes = [extract_code(str(log[-1]["content"])) for log in message_log_batch]
        tests = [_tests(meta) for meta in metadata]
        with ThreadPoolExecutor(self._threads) as threads:
            verdicts = list(threads.map(self._judge, codes, tests))
        passed = [verdict.passed for verdict in verdicts]
        rewards = passed if self._partial else [float(p == 1.0) for p in passed]
        return last_turn(
            rewards,
            answers=codes,
            metrics={
                "tests_passed": passed,
                "no_code": [code is None for code in codes],
                "timed_out": [verdict.timed_out for verdict in verdicts],
            },
        )

    def _judge(self, code: str | None, tests: Sequence[Any]) -> Verdict:
        if code is None:
            return Verdict(0.0, False)
        passed, timed_out = 0, False
        for test in tests:
            good, result = self._passes(code, test)
            passed += good
            timed_out |= result.timed_out
            if not good and not self._partial:
                break
        return Verdict(passed / len(tests), timed_out)

    def _passes(self, code: str, test: Any) -> tuple[bool, Result]:
        if isinstance(test, str):
            result = run_python(f"{code}\n{test}\n", limits=self._limits)
            return result.completed, result
        result = run_python(code, stdin=str(test["input"]), limits=self._limits)
        ended = result.exit_code == 0 and not result.timed_out
        return ended and _lines(result.stdout) == _lines(str(test["output"])), result


def _tests(meta: Mapping[str, Any]) -> Sequence[Any]:
    tests = (meta.get("row") or {}).get("tests")
    tests = [tests] if isinstance(tests, (str, Mapping)) else tests
    usable = isinstance(tests, Sequence) and all(
        isinstance(test, str)
        or (isinstance(test, Mapping) and {"input", "output"} <= set(test))
        for test in tests
    )
    if not tests or not usable:
        raise RewardError(
            f"A row's field 'tests' is {tests!r:.200}, expected a list of Python tests "
            "such as 'assert f(1) == 2', or of {'input': ..., 'output': ...}."
        )
    return tests


def _lines(text: str) -> list[str]:
    """Lines without spaces at their end, and without empty lines at the end."""
    return [line.rstrip() for line in text.rstrip().splitlines()]
