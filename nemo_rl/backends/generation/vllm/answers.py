"""Errors of an engine's processes, handed back like results and raised afterwards.

vLLM reads the answers of an engine's processes up to the first that raised. What the
others answer then stays where the answers to the next call are read.
"""

from __future__ import annotations

import functools
import pickle
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from nemo_rl.backends.refit.control import PeerFailed
from nemo_rl.utils.exceptions import NemoRLError, TrainingError

_Method = TypeVar("_Method", bound=Callable[..., Any])
_ERROR = "nemo_rl_error"
_TRACEBACK_LINES = 8


def answering(method: _Method) -> _Method:
    """Method decorator: what it raises is its answer; see ``checked``."""

    @functools.wraps(method)
    def answer(*args: Any) -> Any:
        try:
            return method(*args)
        except NemoRLError as error:
            return {_ERROR: pickle.dumps(error)}
        except Exception as error:  # noqa: BLE001 - raised by ``checked``
            trace = traceback.format_exc().splitlines()[-_TRACEBACK_LINES:]
            text = "\n".join([f"{type(error).__name__}: {error}", *trace])
            return {_ERROR: pickle.dumps(TrainingError(text))}

    return answer  # type: ignore[return-value]


def checked(answers: list[Any]) -> list[Any]:
    """The answers of all processes, none of which is an error.

    Raises:
        NemoRLError: of the first process that did not merely hear of another's.
    """
    errors = [
        pickle.loads(answer[_ERROR])
        for answer in answers
        if isinstance(answer, dict) and _ERROR in answer
    ]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, PeerFailed))
    return answers
