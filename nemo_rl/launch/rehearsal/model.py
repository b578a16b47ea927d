"""A recipe's model on this machine: config.json, tokenizer, and a small one like it.

Fetches no weights. torch and transformers are imported only to make the small model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_rl.config.backends import training_backend
from nemo_rl.config.master import MasterConfig
from nemo_rl.config.validation import validate_model_shape
from nemo_rl.launch.rehearsal.shrink import HEAD_DIM, shrink
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.imports import import_object, require

LIGHT = ("*.json", "*.jinja", "*.model", "*.txt")
"""Files of a model's folder that are not weights."""
INDEX = "model.safetensors.index.json"
_AUTO = {
    "causal": "AutoModelForCausalLM",
    "score": "AutoModelForSequenceClassification",
}


@dataclass(frozen=True)
class Found:
    """A model at its full size, as far as it is on this machine.

    Attributes:
        name: as the recipe calls it.
        folder: with its config.json and tokenizer.
        config: its parsed config.json.
        weights: what there is of its weights, in words.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    weights: str

    @property
    def shape(self) -> str:
        """Kind and size in words."""
        inner = self.config.get("text_config") or self.config
        kind = (self.config.get("architectures") or ["model"])[0]
        layers, width = inner.get("num_hidden_layers"), inner.get("hidden_size")
        return f"{kind}, {layers} layers of {width} channels"


def find(name: str, *, any_checkpoint: bool = False) -> Found:
    """Find a model's config.json and tokenizer; fetch them where there is a hub.

    Args:
        name: folder, hub name or packaged model.
        any_checkpoint: a checkpoint of a training run is a model as well.

    Raises:
        ConfigurationError: they are not on this machine; says how they get there.
    """
    folder = _folder(name, any_checkpoint)
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigurationError(_missing(name, f"{folder} has no config.json"))
    config = json.loads(file.read_text(encoding="utf-8"))
    return Found(name, folder, config, _weights(folder))


def check(found: Found, recipe: MasterConfig) -> None:
    """Check the model at its full size against the whole recipe.

    Raises:
        ConfigurationError: sizes do not divide it, or it is of an unknown kind.
    """
    validate_model_shape(recipe, found.config)
    if training_backend(recipe.policy) == "megatron":
        read = import_object("nemo_rl.converters.families:model_spec")
        changed = {**found.config, **recipe.policy.hf_config_overrides}
        read(changed, source=str(found.folder / "config.json"))


def write_small(
    found: Found,
    target: Path,
    *,
    kind: str,
    overrides: Mapping[str, Any],
    seed: int = 0,
    head_dim: int = HEAD_DIM,
) -> dict[str, Any]:
    """Write a small random model with the full one's tokenizer; return its config.

    Args:
        found: the full one.
        target: a folder that is made here.
        kind: "causal", or "score" for one output per sequence.
        overrides: entries of config.json that the recipe replaces.
        seed: of its weights.
        head_dim: channels of an attention head.

    Raises:
        ConfigurationError: transformers has no such model, or cannot make it.
    """
    torch, transformers = require("torch"), require("transformers")
    copy_light(found.folder, target)
    config = shrink({**found.config, **overrides}, head_dim=head_dim)
    file = target / "config.json"
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")
    try:
        read = transformers.AutoConfig.from_pretrained(target)
        torch.manual_seed(seed)
        model = getattr(transformers, _AUTO[kind]).from_config(read)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{found.name}: transformers {transformers.__version__} makes no small "
            f"model of its config.json: {type(error).__name__}: {error}"
        ) from error
    model.to(torch.bfloat16).save_pretrained(target)
    # In the spelling of the full one, which is what the engines will have to read.
    file.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return config


def copy_light(source: Path, target: Path) -> None:
    """Copy what is not weights: configuration, tokenizer, templates."""
    target.mkdir(parents=True)
    for pattern in LIGHT:
        for file in source.glob(pattern):
            if not file.name.endswith(".index.json"):
                shutil.copyfile(file, target / file.name)


def _folder(name: str, any_checkpoint: bool) -> Path:
    if any_checkpoint:
        place = Path(name).expanduser()
        if place.is_dir() and not (place / "config.json").is_file():
            return import_object("nemo_rl.models.sources:find_model")(name).folder
    local = import_object("nemo_rl.infra.assets:find_local_model")(name)
    packaged = import_object("nemo_rl.infra.packaged_models:PACKAGED_MODELS")
    if local is not None:
        return local
    if name.lower() in packaged or Path(name).is_absolute() or name[:1] in ".~":
        return import_object("nemo_rl.infra.assets:resolve_model")(name)
    hub = require("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(LIGHT)))
    except (
        OSError,
        hub.errors.OfflineModeIsEnabled,
        hub.errors.HFValidationError,
    ) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigurationError(_missing(name, reason)) from error


def _missing(name: str, reason: str) -> str:
    return (
        f"config.json and tokenizer of {name!r} are not on this machine, and nothing "
        f"after the model can be rehearsed without them: {reason} Fetch them (a few "
        f"MB, no weights) where there is a network: hf download {name} --include "
        "'*.json' '*.jinja' '*.model' '*.txt'. Or name another model whose tokenizer "
        "and shape stand in for it: --stand-in smollm2-135m-instruct."
    )


def _weights(folder: Path) -> str:
    """Say whether a folder's weights are all there."""
    index = folder / INDEX
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted(set(names))
        gone = [name for name in files if not (folder / name).is_file()]
        if not gone:
            return f"all {len(files)} files of weights are here"
        return f"{len(gone)} of {len(files)} files of weights are not here ({gone[0]})"
    if any(folder.glob("*.safetensors")):
        return "weights are here"
    return "its weights are not here"
