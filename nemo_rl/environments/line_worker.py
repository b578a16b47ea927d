"""The program of a line worker: requests in, answers out, one JSON line each.

Started as ``python -m nemo_rl.environments.line_worker module:function seconds`` by
``line_workers.py``, so that a request that hangs or crashes costs only this process.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

from nemo_rl.utils.imports import import_object

MEMORY_BYTES = 8 << 30
"""Address space: the power of two numbers may be larger than the machine."""


def serve(
    function: Callable[..., Any],
    requests: BinaryIO,
    answers: BinaryIO,
    *,
    limit_s: float = 0.0,
) -> None:
    """Answer every request line ``{keyword: value, ...}`` by the function's result.

    Args:
        function: Called with the request as keywords; returns JSON values.
        requests: Lines to read, until their end.
        answers: Gets {"value": ...}, or {"error": ...} where the function raised.
        limit_s: Seconds after which a request ends the process, should nobody be left
            to do so; 0: none.
    """
    for line in requests:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            answer = {"value": function(**json.loads(line))}
        except Exception as error:  # noqa: BLE001 - reported to whoever asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        answers.write(json.dumps(answer, default=str).encode() + b"\n")
        answers.flush()


def main() -> None:
    """Import the function named on the command line and serve it."""
    # What the libraries print must not stand between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    bounded = most if 0 <= most < MEMORY_BYTES else MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (bounded, most))
    os.dup2(2, 1)
    try:
        function = import_object(sys.argv[1])
        prepare = getattr(sys.modules[function.__module__], "prepare", None)
        if prepare is not None:
            prepare()
    except ValueError as error:
        answers.write(json.dumps({"broken": str(error)}).encode() + b"\n")
        answers.flush()
        return
    answers.write(b'{"ready": true}\n')
    answers.flush()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    serve(function, sys.stdin.buffer, answers, limit_s=float(sys.argv[2]))


if __name__ == "__main__":
    main()
