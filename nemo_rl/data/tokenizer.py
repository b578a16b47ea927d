"""load_tokenizer: the tokenizer of a model folder, ready for batches of prompts.

Knows no model and no dataset.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.imports import require


def load_tokenizer(folder: str | Path, chat_template: str | None = None) -> Any:
    """Load the tokenizer of a folder in Hugging Face's layout.

    A tokenizer without a padding token pads with its end token: padding is always
    masked, so any valid id will do.

    Args:
        folder: Where ``tokenizer.json`` (or the older files) lies.
        chat_template: Jinja text, or a file with it, instead of the tokenizer's own.

    Returns:
        A ``transformers`` tokenizer that pads on the right.

    Raises:
        ConfigurationError: No tokenizer in the folder, or it has no end token.
    """
    transformers = require("transformers")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{folder} has no tokenizer that can be read: "
            f"{str(error).strip().splitlines()[0]} Set policy.tokenizer.name to a "
            "folder that has one."
        ) from error
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(
            f"The tokenizer in {folder} has no end token (eos_token); without one a "
            "response cannot end."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    if chat_template is not None:
        tokenizer.chat_template = _template_text(chat_template)
    return tokenizer


def _template_text(chat_template: str) -> str:
    if "{" in chat_template:
        return chat_template
    file = Path(chat_template).expanduser()
    if not file.is_file():
        raise ConfigurationError(
            f"policy.tokenizer.chat_template={chat_template!r} is neither a template "
            "nor a file."
        )
    return file.read_text(encoding="utf-8")
