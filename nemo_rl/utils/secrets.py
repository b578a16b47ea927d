"""Which names hold secrets, and copies without their values; the one place that knows.

Keys of a configuration and environment variables are named differently: a key such as
`prompt_key` or `eos_token` is no secret, a variable that ends so is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

_HIDDEN = "***"
_KEY = re.compile(
    r"(^|_)(api_?key|passw(or)?d|secret|credentials?|(access|auth|bearer|hf)_token)$"
    r"|^token$",
    re.I,
)
_VARIABLE = re.compile(r"TOKEN|SECRET|PASSW(OR)?D|CREDENTIAL|API_?KEY|_KEY$", re.I)


def key_is_secret(key: str) -> bool:
    """Whether a key of a configuration holds a secret; of a path the last part."""
    return bool(_KEY.search(key.rpartition(".")[2]))


def variable_is_secret(name: str) -> bool:
    """Whether an environment variable holds a secret."""
    return bool(_VARIABLE.search(name))


def masked(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without secrets: the value of `api_key` and the like becomes "***"."""
    copy: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            copy[key] = masked(value)
        else:
            secret = value is not None and key_is_secret(str(key))
            copy[key] = _HIDDEN if secret else value
    return copy


def masked_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """A sorted copy of environment variables, without the values of secrets."""
    return {
        name: _HIDDEN if variable_is_secret(name) else value
        for name, value in sorted(variables.items())
    }


def masked_overrides(overrides: Sequence[str]) -> list[str]:
    """Return "key=value" texts without secrets, those inside of a value included.

    Example:
        >>> masked_overrides(["grpo.seed=3", "logger.wandb={api_key: 1, mode: x}"])
        ['grpo.seed=3', 'logger.wandb={"api_key": "***", "mode": "x"}']
    """
    return [_masked_override(text) for text in overrides]


def _masked_override(text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals:
        return text
    if key_is_secret(key):
        return f"{key}={_HIDDEN}"
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        return text
    if not isinstance(parsed, Mapping):
        return text
    hidden = masked(parsed)
    if hidden == parsed:
        return text
    return f"{key}={json.dumps(hidden, default=str)}"
