"""Merge a LoRA adapter into its base: ``W + scale * B @ A``, one tensor at a time.

Computed in float32 and rounded once to the base's dtype. The result is a Hugging Face
folder like the base's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_rl.converters.bridge import some
from nemo_rl.converters.formats.adapter import (
    AdapterWeights,
    Change,
    changes_of,
    read_adapter_config,
)
from nemo_rl.converters.formats.hf import HfWeights
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.converters.output import (
    SHARD_BYTES,
    HfResult,
    Progress,
    natural,
    prevalent,
    publish_hf,
    quiet,
)
from nemo_rl.utils.exceptions import ConfigurationError

OUTPUT = "lm_head.weight"
_EMBEDDING = re.compile(r"(.+\.)?(embed_tokens|wte|word_embeddings|embed_in)\.weight")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "chat_template.jinja")


def merged(
    base: Tensor, a: Tensor, b: Tensor, scale: float, transposed: bool = False
) -> Tensor:
    """A weight with its adapter, rounded once to the weight's dtype.

    Args:
        base: ``[out, in]``, or ``[in, out]`` where it is transposed.
        a: ``[rank, in]``.
        b: ``[out, rank]``.
        scale: factor of ``b @ a``.
        transposed: see ``base``.
    """
    wide = torch.promote_types(base.dtype, torch.float32)
    delta = b.to(wide) @ a.to(wide)
    delta = (delta.T if transposed else delta) * scale
    return (base.to(wide) + delta).to(base.dtype)


class Merge:
    """An adapter and its base, opened and matched.

    Args:
        base: Hugging Face folder.
        adapter: adapter folder.

    Raises:
        ConfigurationError: a tensor of the adapter has no weight in the base or another
            shape, or the adapter is of a kind that is not covered.
    """

    def __init__(self, base: Path, adapter: Path) -> None:
        self.config = read_hf_config(base)
        if self.config.get("quantization_config"):
            raise ConfigurationError(
                f"{base / 'config.json'} describes quantised weights. Merge into the "
                "float weights that they were made from."
            )
        self.adapter_config = read_adapter_config(adapter)
        self.base, self.adapter = HfWeights(base), AdapterWeights(adapter)
        self.changes = changes_of(
            self.adapter_config, self.adapter.shapes, source=str(adapter)
        )
        self.unties = self._unties()
        self._account()

    def __enter__(self) -> Merge:
        return self

    def __exit__(self, *exc: object) -> None:
        self.base.__exit__(*exc)
        self.adapter.__exit__(*exc)

    def names(self) -> list[str]:
        """Tensors of the result, in the order of the layers."""
        found = self.base.names() | ({OUTPUT} if self.unties else set())
        return sorted(found, key=natural)

    def origin(self, name: str) -> str:
        """The base's tensor that a tensor of the result starts from."""
        return self._embedding() if self.unties and name == OUTPUT else name

    def tensor(self, name: str) -> Tensor:
        """A tensor of the result."""
        value = self.base.tensor(self.origin(name))
        change = self.changes.get(name, Change())
        if change.saved is not None:
            value = self.adapter.tensor(change.saved).to(value.dtype)
        if change.low_rank is not None:
            low = change.low_rank
            a, b = self.adapter.tensor(low.a), self.adapter.tensor(low.b)
            value = merged(value, a, b, low.scale, low.transposed)
        return value

    def _unties(self) -> bool:
        """Whether embedding and output layer are one in the base and not afterwards.

        peft trains a copy of what it replaces and adds to one of the two layers alone,
        so the trained model has two matrices where the base has one.
        """
        tied = self.config.get("tie_word_embeddings") or OUTPUT not in self.base
        ends = [n for n in self.changes if n == OUTPUT or _EMBEDDING.fullmatch(n)]
        if not tied or not ends:
            return False
        if (
            self.adapter_config.get("ensure_weight_tying")
            or "text_config" in self.config
        ):
            raise ConfigurationError(
                f"{self.base.folder} ties {self._embedding()} and {OUTPUT}. The "
                f"adapter changes {some(ends)} with ensure_weight_tying or for a model "
                "with a text_config, which is not covered. Merge it with peft."
            )
        return True

    def _embedding(self) -> str:
        found = [name for name in self.base.names() if _EMBEDDING.fullmatch(name)]
        if len(found) != 1:
            raise ConfigurationError(
                f"{self.base.folder} ties its output layer to an embedding, which is "
                f"not found: expected one tensor embed_tokens.weight, found "
                f"{some(found)}."
            )
        return found[0]

    def _account(self) -> None:
        known = set(self.names())
        absent = set(self.changes) - known
        if absent:
            raise ConfigurationError(
                f"{self.adapter.folder} changes weights that {self.base.folder} does "
                f"not have: {some(absent)}. Its weights are named like "
                f"{some(known, 2)}. Name the base that the adapter was trained on"
                f"{self._trained_on()}."
            )
        wrong = set()
        for name, change in self.changes.items():
            shape = self.base.shapes[self.origin(name)]
            found = [self.adapter.shapes[change.saved]] if change.saved else []
            if change.low_rank is not None:
                low = change.low_rank
                delta = (self.adapter.shapes[low.b][0], self.adapter.shapes[low.a][1])
                found.append(delta[::-1] if low.transposed else delta)
            wrong |= {
                f"{name} is {list(shape)}, the adapter's {list(f)}"
                for f in found
                if f != shape
            }
        if wrong:
            raise ConfigurationError(
                f"{self.adapter.folder} does not fit {self.base.folder}: "
                f"{some(wrong)}. Name the base that it was trained on, with its "
                f"embeddings resized as they were then{self._trained_on()}."
            )

    def _trained_on(self) -> str:
        name = self.adapter_config.get("base_model_name_or_path")
        return f": {name}" if name else ""

    def notes(self) -> list[str]:
        """What a user should know and no error is."""
        found, folder = [], self.base.folder
        name = self.adapter_config.get("base_model_name_or_path")
        names = {folder.name, folder.resolve().name, self.config.get("_name_or_path")}
        if name and not {name, Path(name).name} & names:
            found.append(f"the adapter says that its base is {name}, not {folder}")
        for file in _TOKENIZER:
            ours, theirs = folder / file, self.adapter.folder / file
            if theirs.exists() and not _same(ours, theirs):
                found.append(f"{file} is the base's; the adapter has another one")
        if self.unties:
            found.append(
                "the adapter changes the embedding or the output layer, which the base "
                "ties; the result has both and tie_word_embeddings is false"
            )
        return found


def _same(one: Path, two: Path) -> bool:
    return one.exists() and one.read_bytes() == two.read_bytes()


def lora_merge(
    base: Path,
    adapter: Path,
    target: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = quiet,
) -> list[str]:
    """Merge an adapter into its base and write the result.

    Args:
        base: Hugging Face folder that the adapter was trained on.
        adapter: what peft's ``save_pretrained`` wrote.
        target: must not exist.
        shard_bytes: size of a safetensors shard.
        progress: called while tensors are written and compared.

    Returns:
        Notes for the user, such as that the adapter names another base.

    Raises:
        NemoRLError: see ``Merge`` and ``output.publish_hf``.
    """
    with Merge(base, adapter) as merge:
        tensors = []
        for name in merge.names():
            origin = merge.origin(name)
            tensors.append((name, merge.base.shapes[origin], merge.base.dtype(origin)))
        changes: dict[str, Any] = {"dtype": prevalent(tensors)}
        if merge.unties:
            changes["tie_word_embeddings"] = False
        result = HfResult(
            tensors,
            merge.tensor,
            base,
            changes,
            lambda name: merge.base.release(merge.origin(name)),
            "lora-merge",
        )
        publish_hf(target, result, shard_bytes=shard_bytes, progress=progress)
        return merge.notes()
