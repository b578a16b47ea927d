"""The program of a line worker, over lines in memory."""

from __future__ import annotations

import io
import json
import signal

from nemo_rl.environments.line_worker import serve


def divide(a: float, b: float) -> float:
    """What the workers of the tests do."""
    return a / b


def test_answers_are_lines_and_errors_are_answers():
    requests = [{"a": 6, "b": 3}, {"a": 1, "b": 0}, {"a": 1, "c": 2}]
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    answers = io.BytesIO()
    serve(divide, io.BytesIO(lines.encode()), answers, limit_s=60)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
    found = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert found[0] == {"value": 2.0}
    assert found[1] == {"error": "ZeroDivisionError: division by zero"}
    assert found[2]["error"].startswith("TypeError: ")
