"""Which tokens end a response: the recipe's, else the tokenizer's and the model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nemo_rl.utils.exceptions import ConfigurationError


def end_tokens(tokenizer: Any, model_folder: Path) -> tuple[int, ...]:
    """The tokenizer's end token, and those that the model was released with.

    Chat models end a turn and a text with different tokens; generation_config.json
    lists all of them.

    Args:
        tokenizer: None leaves the model's.
        model_folder: Hugging Face folder.

    Raises:
        ConfigurationError: generation_config.json cannot be read.
    """
    found = [getattr(tokenizer, "eos_token_id", None)]
    path = model_folder / "generation_config.json"
    if path.exists():
        try:
            released = json.loads(path.read_text(encoding="utf-8"))["eos_token_id"]
        except KeyError:
            released = None
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(f"{path} cannot be read: {error}") from None
        found += released if isinstance(released, list) else [released]
    return tuple(sorted({int(token) for token in found if token is not None}))
