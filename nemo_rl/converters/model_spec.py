"""The shape of a model as its Hugging Face ``config.json`` declares it; no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_rl.utils.exceptions import ConfigurationError

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Hugging Face architecture name to the family whose rules apply."""

# Megatron's rotary embedding fixes these Llama-3.1 constants; others would be silently
# wrong, so they are refused.
_LLAMA3_ROPE = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Fields that change the forward pass and that the rules do not cover.
_MUST_BE_OFF = ("attention_bias", "mlp_bias", "use_sliding_window")


@dataclass(frozen=True)
class ModelSpec:
    """Everything that the Megatron model and the weight rules need to know.

    Attributes:
        family: key of the rule set (``llama``, ``qwen2``, ``qwen3``).
        head_dim: channels of one attention head.
        num_kv_heads: key-value heads (GQA groups).
        rope_scaling_factor: Llama-3.1 frequency scaling, None without it.
        tied: the output layer is the embedding.
        qkv_bias: query, key and value projections have a bias.
        qk_norm: queries and keys are normalised per head.
    """

    family: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    rope_scaling_factor: float | None
    tied: bool
    qkv_bias: bool
    qk_norm: bool

    def padded_vocab(self, divisor: int) -> int:
        """Smallest vocabulary size >= ``vocab_size`` that ``divisor`` divides."""
        return -(-self.vocab_size // divisor) * divisor

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with: no norms, no input embedding."""
        attention = self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        per_layer = self.hidden_size * (attention + 3 * self.ffn_hidden_size)
        return self.num_layers * per_layer + self.hidden_size * self.vocab_size

    def hf_shape(self, name: str) -> tuple[int, ...]:
        """Shape that the Hugging Face tensor ``name`` must have."""
        hidden, ffn = self.hidden_size, self.ffn_hidden_size
        queries, keys = (
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        )
        shapes = {
            "embed_tokens": (self.vocab_size, hidden),
            "lm_head": (self.vocab_size, hidden),
            "q_proj": (queries, hidden),
            "k_proj": (keys, hidden),
            "v_proj": (keys, hidden),
            "o_proj": (hidden, queries),
            "gate_proj": (ffn, hidden),
            "up_proj": (ffn, hidden),
            "down_proj": (hidden, ffn),
            "q_norm": (self.head_dim,),
            "k_norm": (self.head_dim,),
        }
        *_, module, kind = name.split(".")
        shape = shapes.get(module, (hidden,))
        return shape[:1] if kind == "bias" else shape


def read_hf_config(folder: str | Path) -> dict[str, Any]:
    """Read ``config.json`` of a Hugging Face folder.

    Raises:
        ConfigurationError: the folder or the file is missing or is not JSON.
    """
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
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


def model_spec(config: Mapping[str, Any], *, source: str = "config.json") -> ModelSpec:
    """Interpret a Hugging Face configuration.

    Args:
        config: parsed ``config.json`` (transformers 4 and 5 spellings).
        source: named in errors.

    Raises:
        ConfigurationError: an architecture or field that the rules do not cover.
    """
    family = _family(config, source)
    heads = _integer(config, "num_attention_heads", source)
    hidden = _integer(config, "hidden_size", source)
    _refuse_uncovered(config, family, source)
    theta, factor = _rope(config, source)
    return ModelSpec(
        family=family,
        num_layers=_integer(config, "num_hidden_layers", source),
        hidden_size=hidden,
        ffn_hidden_size=_integer(config, "intermediate_size", source),
        num_heads=heads,
        num_kv_heads=_integer(config, "num_key_value_heads", source, heads),
        head_dim=_integer(config, "head_dim", source, hidden // heads),
        vocab_size=_integer(config, "vocab_size", source),
        max_positions=_integer(config, "max_position_embeddings", source, 4096),
        norm_eps=_number(config, "rms_norm_eps", source, 1e-6),
        rope_theta=theta,
        rope_scaling_factor=factor,
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
    )


def _family(config: Mapping[str, Any], source: str) -> str:
    names = config.get("architectures")
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and name in FAMILIES:
            return FAMILIES[name]
    raise ConfigurationError(
        f"{source} declares architectures={names!r}, which the Megatron backend "
        f"does not know. Supported: {', '.join(FAMILIES)}."
    )


def _integer(
    config: Mapping[str, Any], key: str, source: str, default: int | None = None
) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ConfigurationError(
            f"{source}: {key}={value!r}, expected a positive integer"
        )
    return value


def _number(
    config: Mapping[str, Any], key: str, source: str, default: float | None = None
) -> float:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise ConfigurationError(
            f"{source}: {key}={value!r}, expected a positive number"
        )
    return float(value)


def _refuse_uncovered(config: Mapping[str, Any], family: str, source: str) -> None:
    for key in _MUST_BE_OFF:
        if config.get(key) and not (family == "qwen2" and key == "attention_bias"):
            raise ConfigurationError(
                f"{source}: {key}={config[key]!r} is not covered by the {family} "
                f"rules, which expect it to be absent or false"
            )
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ConfigurationError(
            f"{source}: hidden_act={activation!r}; the {family} rules expect 'silu'"
        )
    if config.get("quantization_config"):
        raise ConfigurationError(
            f"{source} describes quantised weights; training needs a folder with "
            "float weights (load it with transformers, dequantise, save_pretrained)"
        )


def _rope(config: Mapping[str, Any], source: str) -> tuple[float, float | None]:
    """Base and Llama-3.1 factor from ``rope_parameters`` (v5) or ``rope_scaling``."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise ConfigurationError(
            f"{source}: rotary scaling {scaling!r}, expected an object with rope_type"
        )
    theta = _number({**config, **scaling}, "rope_theta", source, 10000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return theta, None
    wrong = {
        key: scaling.get(key)
        for key, expected in _LLAMA3_ROPE.items()
        if scaling.get(key, expected) != expected
    }
    if kind != "llama3" or wrong:
        raise ConfigurationError(
            f"{source}: rotary scaling {dict(scaling)} is not supported; expected "
            f"rope_type 'default', or 'llama3' with {_LLAMA3_ROPE}"
        )
    return theta, _number(scaling, "factor", source)
