"""Which keys of a configuration hold secrets, and copies without their values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SECRET = re.compile(
    r"(^|_)(api_?key|password|secret|credentials?|(access|auth|bearer|hf)_token)$", re.I
)


def masked(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without secrets: the value of `api_key` and the like becomes "***"."""
    copy: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            copy[key] = masked(value)
        else:
            secret = value is not None and _SECRET.search(str(key))
            copy[key] = "***" if secret else value
    return copy
