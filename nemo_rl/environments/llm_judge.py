"""LLMJudgeEnvironment: a model behind an OpenAI-style URL marks the responses."""

from __future__ import annotations

import http.client
import json
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nemo_rl.config.environment import LLMJudgeEnvConfig
from nemo_rl.environments.interfaces import (
    EnvironmentInterface,
    EnvironmentReturn,
    last_turn,
)
from nemo_rl.utils.env import secret
from nemo_rl.utils.exceptions import ConfigurationError, RewardError

logger = logging.getLogger(__name__)

INSTRUCTION = """\
You mark a response to a request.

Request:
{prompt}

Reference answer, if there is one:
{answer}

Response:
{response}

Say briefly what is right and wrong in the response. Then write, on a line of its own, \
the mark from 0 (useless) to {max_score} (perfect):
Score: <mark>"""

_SCORE = re.compile(r"score\s*[:=]\s*[*\[]*\s*(-?\d+(?:\.\d+)?)", re.IGNORECASE)
_FIELDS = re.compile(r"\{(prompt|response|answer|max_score)\}")
_TRY_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT_S = 60.0


def parse_score(text: str, max_score: float) -> float | None:
    """Return the number after the last "Score:", or None if it is no valid mark."""
    found = _SCORE.findall(text)
    value = float(found[-1]) if found else -1.0
    return value if 0 <= value <= max_score else None


class LLMJudgeEnvironment(EnvironmentInterface):
    """Rewards ``mark / max_score`` of a judge's answer.

    A request that fails for a while (no connection, time-out, HTTP 429 or 5xx) is
    repeated with growing waits, and ends the run if it fails to the last. An answer
    without a valid "Score: 7" counts as 0 and in the metric ``not_marked``.

    Args:
        config: The fields of ``env.llm_judge``.
        first_wait_s: Seconds before the first repetition; doubled for each next.

    Raises:
        ConfigurationError: The variable for the key is not set.
    """

    def __init__(
        self,
        config: LLMJudgeEnvConfig | Mapping[str, Any],
        *,
        first_wait_s: float = 1.0,
    ) -> None:
        """Read the settings; the key is read at every step and kept nowhere."""
        section = LLMJudgeEnvConfig.from_mapping(config)
        super().__init__(section.to_dict())
        self._section, self._first_wait_s = section, first_wait_s
        self._url = f"{section.base_url.rstrip('/')}/chat/completions"
        if not section.base_url.startswith(("http://", "https://")):
            raise ConfigurationError(
                f"env.llm_judge.base_url={section.base_url!r}: expected a URL that "
                "begins with http:// or https://."
            )
        self._key()

    def step(
        self,
        message_log_batch: list[list[dict[str, Any]]],
        metadata: list[dict[str, Any]],
    ) -> EnvironmentReturn:
        """Let the judge mark every conversation's last message; all are over.

        Raises:
            RewardError: The judge cannot be reached, or refuses the request.
        """
        key = self._key()
        questions = [
            self._question(log, meta)
            for log, meta in zip(message_log_batch, metadata, strict=True)
        ]
        with ThreadPoolExecutor(self._section.num_requests) as threads:
            answers = list(threads.map(lambda text: self._ask(text, key), questions))
        best = self._section.max_score
        marks = [parse_score(answer, best) for answer in answers]
        return last_turn(
            [(mark or 0.0) / best for mark in marks],
            answers=[*answers],
            metrics={"not_marked": [mark is None for mark in marks]},
        )

    def _key(self) -> str | None:
        name = self._section.api_key_env
        value = secret(name) if name else None
        if name and not value:
            raise ConfigurationError(
                f"env.llm_judge.api_key_env names the variable {name}, which is not "
                "set. Set it to the key where the driver runs."
            )
        return value

    def _question(self, log: list[dict[str, Any]], meta: Mapping[str, Any]) -> str:
        asked = [str(m["content"]) for m in log[:-1] if m["role"] == "user"]
        answer = meta.get("answer")
        fields = {
            "prompt": asked[-1] if asked else "",
            "response": str(log[-1]["content"]),
            "answer": "" if answer is None else str(answer),
            "max_score": f"{self._section.max_score:g}",
        }
        # One pass: a response that contains {answer} does not get it.
        template = self._section.instruction or INSTRUCTION
        return _FIELDS.sub(lambda match: fields[match[1]], template)

    def _ask(self, question: str, key: str | None) -> str:
        body = {
            "model": self._section.judge,
            "messages": [{"role": "user", "content": question}],
            **self._section.request,
        }
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            self._url, json.dumps(body).encode(), headers, method="POST"
        )
        wait = self._first_wait_s
        for left in reversed(range(self._section.max_retries + 1)):
            problem, again = "", True
            try:
                with _opener.open(request, timeout=self._section.timeout_s) as answer:
                    return _content(answer.read())
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code} {error.reason}: {_excerpt(error, key)}"
                again = error.code in _TRY_AGAIN
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            if not left or not again:
                raise RewardError(f"The judge at {self._url} answers {problem}.")
            logger.info("The judge answers %s; asked again in %g s.", problem, wait)
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)
        raise AssertionError("unreachable")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection would take the key to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


def _content(body: bytes) -> str:
    try:
        return str(json.loads(body)["choices"][0]["message"]["content"])
    except (ValueError, LookupError, TypeError):
        raise RewardError(
            f"The judge's answer is no chat completion: {body[:200]!r}"
        ) from None


def _excerpt(error: urllib.error.HTTPError, key: str | None) -> str:
    text = error.read(500).decode(errors="replace")
    return text.replace(key, "***") if key else text
