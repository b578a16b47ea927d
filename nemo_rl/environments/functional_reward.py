"""FunctionalRewardWrapper: a plain Python function as an environment of one turn.

Decides from the signature how the function wants to be called, and turns whatever goes
wrong in it into an error that names function, prompt and response.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nemo_rl.environments.interfaces import (
    EnvironmentInterface,
    EnvironmentReturn,
    last_turn,
)
from nemo_rl.utils.exceptions import ConfigurationError, NemoRLError, RewardError

EXTRAS = ("answer", "row", "truncated", "messages")
"""Keywords passed to a function that has them; lists, with an s, if batched."""
_BATCHED_EXTRAS = {
    "answer": "answers",
    "row": "rows",
    "truncated": "truncated",
    "messages": "messages",
}
EXCERPT = 200


class FunctionalRewardWrapper(EnvironmentInterface):
    """Scores by ``fn(prompt, response) -> float``, or by its batched form.

    ``prompt`` is the last user message and ``response`` the generated text without
    the end token. A function that has one of the parameters ``answer``, ``row``,
    ``truncated`` or ``messages`` gets it too (batched: ``answers``, ``rows``, ...).

    Example:
        >>> def short(prompts: list[str], responses: list[str]) -> list[float]:
        ...     return [1.0 / (1 + len(text)) for text in responses]
        >>> environment = FunctionalRewardWrapper(short)

    Args:
        fn: The reward function.
        name: How errors call it; its own name when None.
        batched: Whether it takes lists; decided from names and annotations when None.
        kwargs: Further keywords passed in every call.

    Raises:
        ConfigurationError: It is no function of a prompt and a response.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        name: str | None = None,
        batched: bool | None = None,
        *,
        kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Read the signature."""
        super().__init__(kwargs)
        if not callable(fn):
            raise ConfigurationError(
                f"A reward must be a function of (prompt, response), got {fn!r}."
            )
        self.fn = fn
        self.name = name or getattr(fn, "__name__", type(fn).__name__)
        parameters = _parameters(fn, self.name)
        self._kwargs = dict(kwargs or {})
        positional = [
            p
            for p in parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ][:2]
        self.batched = _looks_batched(positional) if batched is None else batched
        self._extras = self._wanted(parameters, [p.name for p in positional])

    def step(
        self,
        message_log_batch: list[list[dict[str, Any]]],
        metadata: list[dict[str, Any]],
    ) -> EnvironmentReturn:
        """Score the last message of every conversation; all are over.

        Raises:
            RewardError: The function raised, or returned no finite number.
        """
        prompts = [_last(log, "user") for log in message_log_batch]
        responses = [str(log[-1]["content"]) for log in message_log_batch]
        extras = self._columns(message_log_batch, metadata)
        score = self._score_batch if self.batched else self._score_each
        rewards = score(prompts, responses, extras) if prompts else []
        return last_turn(rewards)

    def _wanted(
        self, parameters: Mapping[str, inspect.Parameter], positional: list[str]
    ) -> dict[str, str]:
        """Return field -> keyword for what the function asks beyond its first two."""
        known = _BATCHED_EXTRAS if self.batched else {name: name for name in EXTRAS}
        rest = {n: p for n, p in parameters.items() if n not in positional}
        takes_all = any(p.kind is p.VAR_KEYWORD for p in rest.values())
        wanted = {
            field: keyword
            for field, keyword in known.items()
            if keyword not in self._kwargs and (takes_all or keyword in rest)
        }
        unknown = [
            name
            for name, parameter in rest.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            and name not in {*wanted.values(), *self._kwargs}
        ]
        if unknown:
            raise ConfigurationError(
                f"The reward function {self.name} asks for {', '.join(unknown)}; "
                "beside the first two it can have "
                f"{', '.join(known.values())}, or a keyword given in env.kwargs."
            )
        return wanted

    def _columns(
        self,
        logs: list[list[dict[str, Any]]],
        metadata: list[dict[str, Any]],
    ) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {}
        for field, keyword in self._extras.items():
            if field == "messages":
                columns[keyword] = [list(log[:-1]) for log in logs]
            else:
                columns[keyword] = [(meta or {}).get(field) for meta in metadata]
        return columns

    def _score_each(
        self, prompts: list[str], responses: list[str], extras: dict[str, list[Any]]
    ) -> list[float]:
        rewards = []
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            keywords = {key: column[row] for key, column in extras.items()}
            with _Blame(self.name, prompt, response):
                value = self.fn(prompt, response, **keywords, **self._kwargs)
            rewards.append(self._number(value, prompt, response))
        return rewards

    def _score_batch(
        self, prompts: list[str], responses: list[str], extras: dict[str, list[Any]]
    ) -> list[float]:
        with _Blame(self.name, prompts[0], responses[0], count=len(prompts)):
            values = self.fn(prompts, responses, **extras, **self._kwargs)
        values = values.tolist() if hasattr(values, "tolist") else values
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise RewardError(
                f"The batched reward function {self.name} returned "
                f"{type(values).__name__}, expected a list of {len(prompts)} numbers."
            )
        if len(values) != len(prompts):
            raise RewardError(
                f"The batched reward function {self.name} returned {len(values)} "
                f"rewards for {len(prompts)} responses."
            )
        return [
            self._number(value, prompt, response)
            for value, prompt, response in zip(values, prompts, responses, strict=True)
        ]

    def _number(self, value: Any, prompt: str, response: str) -> float:
        plain = value.item() if getattr(value, "shape", None) == () else value
        if isinstance(plain, (bool, int, float)) and math.isfinite(plain):
            return float(plain)
        raise RewardError(
            f"The reward function {self.name} returned {value!r}, expected a finite "
            f"number.{_excerpts(prompt, response)}"
        )


class _Blame:
    """Context that turns what a user's function raises into a RewardError."""

    def __init__(self, name: str, prompt: str, response: str, count: int = 1) -> None:
        self._name, self._count = name, count
        self._prompt, self._response = prompt, response

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if isinstance(error, Exception) and not isinstance(error, NemoRLError):
            line = _innermost_line(trace)
            first = f" (first of {self._count})" if self._count > 1 else ""
            raise RewardError(
                f"The reward function {self._name} raised {kind.__name__}: {error}"
                f"{line}.{_excerpts(self._prompt, self._response)}{first}"
            ) from error
        return False


def _innermost_line(trace: Any) -> str:
    """Name the line that raised, unless it is the call in this module itself."""
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename
    return "" if file == __file__ else f" at {file}, line {trace.tb_lineno}"


def _excerpts(prompt: str, response: str) -> str:
    def cut(text: str) -> str:
        return repr(text if len(text) <= EXCERPT else f"{text[:EXCERPT]}...")

    return f"\nPrompt: {cut(prompt)}\nResponse: {cut(response)}"


def _last(log: list[dict[str, Any]], role: str) -> str:
    contents = [str(m["content"]) for m in log[:-1] if m["role"] == role]
    return contents[-1] if contents else ""


def _parameters(fn: Callable[..., Any], name: str) -> dict[str, inspect.Parameter]:
    try:
        parameters = dict(inspect.signature(fn).parameters)
    except (TypeError, ValueError):
        # A few built-in functions do not say what they take.
        return {}
    kinds = [p.kind for p in parameters.values()]
    positional = sum(
        kind
        in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for kind in kinds
    )
    if positional < 2 and inspect.Parameter.VAR_POSITIONAL not in kinds:
        raise ConfigurationError(
            f"The reward function {name}{inspect.signature(fn)} must take a prompt and "
            "a response as its first two parameters."
        )
    return parameters


def _looks_batched(positional: list[inspect.Parameter]) -> bool:
    if not positional:
        return False
    names = [parameter.name for parameter in positional]
    texts = [_annotation(parameter) for parameter in positional]
    annotated = [text.startswith(("list", "sequence", "iterable")) for text in texts]
    return all(annotated) or (
        names == ["prompts", "responses"] and not any(t == "str" for t in texts)
    )


def _annotation(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return ""
    text = annotation if isinstance(annotation, str) else str(annotation)
    if isinstance(annotation, type) and not hasattr(annotation, "__origin__"):
        text = annotation.__name__ if "[" not in text else text
    return text.rpartition("typing.")[2].rpartition("collections.abc.")[2].lower()
