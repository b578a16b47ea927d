"""Hugging Face weight folders: read tensors by name, finish what was written.

Knows files and tensors, not models. A tensor is a view of its mapped file, which is
read when the tensor is used. ``safetensors_stream.py`` writes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nemo_rl.converters.formats.mapped import MappedFile
from nemo_rl.converters.formats.safetensors_stream import DTYPE_NAMES
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
        ConfigurationError: no safetensors, a missing shard, an unreadable file, a
            tensor in two files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        self._places: dict[str, tuple[MappedFile, int, int]] = {}
        for path, expected in self._files().items():
            self._open(path, expected)

    def __enter__(self) -> HfWeights:
        return self

    def __exit__(self, *exc: object) -> None:
        # A file stays mapped until the last tensor that was read from it is gone.
        self._places.clear()

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def names(self) -> set[str]:
        """All tensor names."""
        return set(self.shapes)

    def tensor(self, name: str) -> Tensor:
        """One tensor as stored; its bytes are read when they are used."""
        file, start, _ = self._places[name]
        return file.tensor(start, self.shapes[name], self.dtype(name))

    def release(self, name: str) -> None:
        """Give back the memory of a tensor that was read; it may be read again."""
        file, start, length = self._places[name]
        file.release(start, length)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that the header declares; nothing is read."""
        for dtype, spelling in DTYPE_NAMES.items():
            if spelling == self._dtypes[name]:
                return dtype
        raise ConfigurationError(
            f"{self.folder}: {name} is {self._dtypes[name]}, expected one of "
            f"{', '.join(DTYPE_NAMES.values())}. Dequantise the weights first, or "
            "convert them with transformers."
        )

    def declared(self, name: str) -> tuple[str, int]:
        """The dtype as the header spells it, any there is, and the bytes."""
        return self._dtypes[name], self._places[name][2]

    def _files(self) -> dict[Path, set[str]]:
        """The files, and the tensors that the index says they hold."""
        index = self.folder / INDEX_NAME
        if not index.exists():
            single = self.folder / SINGLE_NAME
            if single.exists():
                return {single: set()}
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
        found: dict[Path, set[str]] = {self.folder / name: set() for name in names}
        for tensor, name in weight_map.items():
            found[self.folder / name].add(tensor)
        return found

    def _open(self, path: Path, expected: set[str]) -> None:
        try:
            # safetensors checks that the header and the file's size agree. For torch
            # it would reserve as much memory as the file is large.
            with safe_open(str(path), framework="np") as handle:
                names = list(handle.keys())
            file = MappedFile(path)
            length = int.from_bytes(file.bytes(0, 8), "little")
            header = json.loads(file.bytes(8, length))
        except (SafetensorError, OSError, ValueError) as error:
            raise ConfigurationError(
                f"{path} is not a readable safetensors file ({error}). It may be "
                "truncated: download or copy it again."
            ) from None
        if missing := expected - set(names):
            raise ConfigurationError(
                f"{path} lacks {len(missing)} tensors that {INDEX_NAME} says it has, "
                f"such as {min(missing)}. Download or copy both again."
            )
        for name in names:
            if name in self._places:
                other = self._places[name][0].path.name
                raise ConfigurationError(
                    f"{self.folder}: {name} is in {other} and in {path.name}; which "
                    "one counts is not known. Remove the shard that does not belong."
                )
            entry = header[name]
            start, end = entry["data_offsets"]
            self.shapes[name] = tuple(entry["shape"])
            self._dtypes[name] = entry["dtype"]
            self._places[name] = (file, 8 + length + start, end - start)


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
        write_weight_map(folder, weight_map, sum(part["bytes"] for part in parts))
    copy_companions(source, folder)
    write_config(folder, config_changes)


def write_weight_map(folder: Path, owners: Mapping[str, str], size: int) -> None:
    """Write the index of a folder of several shards.

    Args:
        folder: of the shards.
        owners: tensor to the file that holds it.
        size: bytes of all tensors.
    """
    index = {
        "metadata": {"total_size": size},
        "weight_map": dict(sorted(owners.items())),
    }
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


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
