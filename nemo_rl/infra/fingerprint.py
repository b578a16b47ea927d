"""What tells one base model from another, cheaply: shape, sizes and sampled bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from nemo_rl.utils.exceptions import ConfigurationError

_SHAPE_KEYS = (
    "architectures",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
)
_SAMPLE_BYTES = 1 << 16


def model_fingerprint(folder: Path) -> dict[str, Any]:
    """Identify the weights and the tokenizer in a Hugging Face folder.

    The weights are sampled at both ends of every file, so that a fine-tuned model of
    the same shape has another fingerprint and 100 GB need not be read. Where the
    folder lies does not matter.

    Returns:
        ``model`` (shape), ``base_weights`` and ``tokenizer`` (digests).
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{folder}/config.json cannot be read: {error}"
        ) from None
    return {
        "model": {key: config[key] for key in _SHAPE_KEYS if key in config},
        "base_weights": _digest(sorted(folder.glob("*.safetensors"))),
        "tokenizer": _digest(sorted(folder.glob("tokenizer*.json"))),
    }


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(str(size).encode())
        with open(path, "rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
