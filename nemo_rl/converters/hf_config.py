"""Read a Hugging Face ``config.json``, field by field, with errors that name the field.

Knows JSON and fields, not what a family makes of them; no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_rl.converters.model_spec import Rope
from nemo_rl.utils.exceptions import ConfigurationError

# Megatron's rotary embedding fixes these Llama-3.1 constants; others would be silently
# wrong, so they are refused.
_LLAMA3_ROPE = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read_hf_config(folder: str | Path) -> dict[str, Any]:
    """Read ``config.json`` of a Hugging Face folder.

    Raises:
        ConfigurationError: the folder or the file is missing or is not JSON.
    """
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        refuse_adapter(Path(folder))
        raise ConfigurationError(
            f"{folder} is not a Hugging Face model folder: it has no config.json. "
            "Point policy.model_name at a folder made by save_pretrained()."
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigurationError(f"{path} holds {type(config).__name__}, not an object")
    return config


def refuse_adapter(folder: Path) -> None:
    """Say what to do with a folder that holds an adapter and no model.

    Raises:
        ConfigurationError: it is one.
    """
    if (folder / "adapter_config.json").exists() and not any(
        folder.glob("model*.safetensors*")
    ):
        raise ConfigurationError(
            f"{folder} holds a LoRA adapter, not a model. Merge it into its base "
            f"first: nemo-rl convert lora-merge BASE {folder} OUT"
        )


@dataclass(frozen=True)
class HfConfig:
    """A parsed ``config.json`` and the place it came from, for errors.

    Attributes:
        values: its fields (transformers 4 and 5 spellings).
        source: named in errors.
    """

    values: Mapping[str, Any]
    source: str = "config.json"

    def get(self, key: str, default: Any = None) -> Any:
        """A field; ``null`` counts as absent."""
        value = self.values.get(key)
        return default if value is None else value

    def error(self, text: str) -> ConfigurationError:
        """The error of a field, with the file's name before it."""
        return ConfigurationError(f"{self.source}: {text}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer.

        Raises:
            ConfigurationError: it is absent without a default, or something else.
        """
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self.error(
                f"{key}={self.values.get(key)!r}, expected a positive integer"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; errors as ``integer``."""
        value = self.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise self.error(
                f"{key}={self.values.get(key)!r}, expected a positive number"
            )
        return float(value)

    def optional(self, key: str, default: float | None = None) -> float | None:
        """A positive number, or None where the field is null.

        Args:
            key: of the field.
            default: what an absent field means.
        """
        if self.values.get(key, default) is None:
            return None
        return self.number(key, default)

    def layer_kinds(self, key: str, names: tuple[str, ...]) -> list[str] | None:
        """One of ``names`` per layer, or None where the field is absent."""
        kinds = self.get(key)
        if kinds is None:
            return None
        layers = self.integer("num_hidden_layers")
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise self.error(f"{key}={kinds!r}, expected a list of {layers} entries")
        for kind in kinds:
            if kind not in names:
                raise self.error(f"{key} has {kind!r}, expected {' or '.join(names)}")
        return kinds

    def expect(self, family: str, **allowed: Any) -> None:
        """Refuse fields whose value changes the model in a way no rule covers.

        Args:
            family: named in the error.
            allowed: the value that a field may have; it may also be absent, and where
                the value is False, be anything that counts as false.
        """
        for key, value in allowed.items():
            found = self.get(key)
            if found is None or found == value or (value is False and not found):
                continue
            raise self.error(
                f"{key}={found!r} is not covered by the {family} rules, which expect "
                f"it to be absent or {json.dumps(value)}"
            )

    def rope(self, entry: str | None = None, theta: float = 10000.0) -> Rope:
        """Rotary embedding from ``rope_parameters`` (v5) or ``rope_scaling`` (v4).

        Args:
            entry: the kind of layer whose entry is read, where kinds have their own.
            theta: base where the configuration names none.
        """
        scaling = self.get("rope_parameters") or self.get("rope_scaling") or {}
        if entry and isinstance(scaling, Mapping) and entry in scaling:
            scaling = scaling[entry]
        if not isinstance(scaling, Mapping):
            raise self.error(
                f"rotary scaling {scaling!r}, expected an object with rope_type"
            )
        fields = HfConfig({**self.values, **scaling}, self.source)
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        rope = Rope(
            theta=fields.number("rope_theta", theta),
            percent=fields.number("partial_rotary_factor", 1.0),
        )
        if kind == "default":
            return rope
        wrong = kind == "llama3" and any(
            scaling.get(key, value) != value for key, value in _LLAMA3_ROPE.items()
        )
        if kind not in ("llama3", "linear") or wrong:
            raise self.error(
                f"rotary scaling {dict(scaling)} is not supported; expected rope_type "
                f"'default', 'linear', or 'llama3' with {_LLAMA3_ROPE}"
            )
        return Rope(rope.theta, kind, fields.number("factor"), rope.percent)
