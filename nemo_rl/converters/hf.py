"""Hugging Face weight folders: read tensors by name, write shards as they come.

Knows files and tensors, not models. Reading maps files lazily, one tensor at a time;
writing never holds more than one shard.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nemo_rl.converters.safetensors_stream import DTYPE_NAMES
from nemo_rl.utils.exceptions import ConfigurationError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
HF_PART = "hf"
"""Folder in a Megatron checkpoint that keeps config.json and the tokenizer."""
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)


class HfWeights:
    """The safetensors files of one folder as a mapping from name to tensor.

    Use as a context manager. ``shapes`` holds the declared shape of every tensor.

    Raises:
        ConfigurationError: no safetensors, a missing shard, an unreadable file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._stack = ExitStack()
        self._owner: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        try:
            for path in self._files():
                self._open(path)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> HfWeights:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._owner

    def names(self) -> set[str]:
        """All tensor names."""
        return set(self._owner)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor as stored."""
        return self._owner[name].get_tensor(name)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that the header declares; nothing is read."""
        declared = self._owner[name].get_slice(name).get_dtype()
        for dtype, spelling in DTYPE_NAMES.items():
            if spelling == declared:
                return dtype
        raise ConfigurationError(
            f"{self.folder}: {name} is {declared}, expected one of "
            f"{', '.join(DTYPE_NAMES.values())}"
        )

    def _files(self) -> list[Path]:
        index = self.folder / INDEX_NAME
        if not index.exists():
            single = self.folder / SINGLE_NAME
            if single.exists():
                return [single]
            raise ConfigurationError(
                f"{self.folder} has neither {SINGLE_NAME} nor {INDEX_NAME}. Weights "
                "are read from safetensors only; convert others with transformers' "
                "save_pretrained(..., safe_serialization=True)."
            )
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(weight_map.values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigurationError(
                f"{index} is not a weight index: {error!r}"
            ) from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise ConfigurationError(
                    f"{index} names the shard {name!r}, which is not a file of its "
                    "folder"
                )
            if not (self.folder / name).exists():
                raise ConfigurationError(
                    f"{self.folder} is incomplete: {INDEX_NAME} names the shard "
                    f"{name}, which is missing. Download or copy it again."
                )
        return [self.folder / name for name in names]

    def _open(self, path: Path) -> None:
        try:
            handle = self._stack.enter_context(safe_open(str(path), framework="pt"))
        except (SafetensorError, OSError) as error:
            raise ConfigurationError(
                f"{path} is not a readable safetensors file ({error}). It may be "
                "truncated: download or copy it again."
            ) from None
        for name in handle.keys():  # noqa: SIM118 - a safetensors handle, not a dict
            self._owner[name] = handle
            self.shapes[name] = tuple(handle.get_slice(name).get_shape())


def finish_folder(
    folder: Path,
    written: Iterable[dict[str, Any]],
    *,
    source: Path,
    config_changes: Mapping[str, Any],
) -> None:
    """Give shards their final names, write the index, copy config and tokenizer.

    Args:
        folder: where the shards lie.
        written: the ``close()`` results of every writer, in pipeline order.
        source: the Hugging Face folder that the model was loaded from.
        config_changes: entries of config.json that differ from the source's, such as
            ``dtype``, what the shards hold.
    """
    parts = list(written)
    shards = [item for part in parts for item in part["shards"].items()]
    weight_map: dict[str, str] = {}
    for number, (old, names) in enumerate(shards, start=1):
        new = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        if len(shards) == 1:
            new = SINGLE_NAME
        os.replace(folder / old, folder / new)
        weight_map.update(dict.fromkeys(names, new))
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(part["bytes"] for part in parts)},
            "weight_map": dict(sorted(weight_map.items())),
        }
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")
    copy_companions(source, folder)
    write_config(folder, config_changes)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy configuration and tokenizer from one folder to another."""
    for name in _COMPANIONS:
        if (source / name).exists():
            shutil.copy2(source / name, folder / name)


def write_config(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change entries of ``config.json``; ``dtype`` has one spelling afterwards."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config |= changes
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
