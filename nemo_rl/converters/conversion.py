"""What a conversion will do: the source, opened and accounted for, and the result."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

import nemo_rl
from nemo_rl.converters.bridge import (
    HfSide,
    MegatronSide,
    Side,
    Weight,
    find_weights,
    is_megatron,
    some,
    weights_of,
)
from nemo_rl.converters.families import model_spec
from nemo_rl.converters.formats.hf import HF_PART
from nemo_rl.converters.hf_config import read_hf_config, refuse_adapter
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.targets import HfTarget, MegatronTarget, Plan, Target
from nemo_rl.utils.exceptions import ConfigurationError

_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json", "*.distcp", ".metadata")
_HEAD = 64 << 10


def open_side(folder: Path, config: Path | None = None) -> tuple[Side, ModelSpec]:
    """Open a folder of either kind and account for its tensors.

    Args:
        folder: Hugging Face folder, distributed checkpoint, or training checkpoint.
        config: folder of the ``config.json`` that describes a distributed checkpoint;
            None for the one that a conversion left in it.

    Raises:
        NemoRLError: no such folder, no configuration, or tensors that do not fit it.
    """
    if not folder.is_dir():
        raise ConfigurationError(
            f"{folder} is not a folder. A model of the Hugging Face hub is converted "
            "from a local copy: hf download ORG/NAME --local-dir FOLDER"
        )
    if not is_megatron(folder):
        refuse_adapter(folder)
        spec = model_spec(read_hf_config(folder), source=str(folder / "config.json"))
        return HfSide(folder, spec), spec
    place = config_of(folder, config)
    spec = model_spec(read_hf_config(place), source=str(place / "config.json"))
    return MegatronSide(folder, spec), spec


def config_of(folder: Path, config: Path | None) -> Path:
    """The folder with the ``config.json`` of a folder of weights.

    Raises:
        ConfigurationError: there is none.
    """
    if config is not None:
        return config
    beside = find_weights(folder).parent if is_megatron(folder) else folder
    for place in (folder / HF_PART, folder, beside / HF_PART):
        if (place / "config.json").exists():
            return place
    raise ConfigurationError(
        f"{folder} has no {HF_PART}/config.json, so the model's shape is not known. "
        "Name the Hugging Face folder that it was trained from: --config FOLDER."
    )


def dtypes_of(
    side: Side, weights: list[Weight], dtype: torch.dtype | None
) -> list[torch.dtype]:
    """The dtype that each weight is written in.

    Args:
        side: where the weights come from.
        weights: of the result.
        dtype: asked for; None keeps every tensor's own.

    Raises:
        ConfigurationError: tensors that become one have several dtypes; one of them
            would lose what others hold.
    """
    found: dict[str, set[torch.dtype]] = {}
    chosen = []
    for weight in weights:
        own = side.dtypes(weight)
        one = own[0] if dtype is None or weight.rule.keeps_dtype else dtype
        found.setdefault(weight.key, set()).update(own if one is own[0] else {one})
        chosen.append(one)
    mixed = {key: dtypes for key, dtypes in found.items() if len(dtypes) > 1}
    if mixed:
        key, dtypes = next(iter(mixed.items()))
        names = sorted(str(d).removeprefix("torch.") for d in dtypes)
        raise ConfigurationError(
            f"{side.folder} holds {' and '.join(names)} tensors that become one, "
            f"{key}. Say which dtype the result shall have: --dtype float32 loses "
            "nothing."
        )
    return chosen


def total_bytes(weights: list[Weight], dtypes: list[torch.dtype]) -> int:
    """Bytes of all weights."""
    pairs = zip(weights, dtypes, strict=True)
    return sum(math.prod(w.shape) * dtype.itemsize for w, dtype in pairs)


@dataclass(frozen=True)
class Request:
    """What somebody asks for; small, so that it can go to another process.

    Attributes:
        source: see ``open_side``.
        config: see ``open_side``.
        dtype: of the result; None keeps every tensor's own.
        shard_bytes: size of a file of the result.
    """

    source: Path
    config: Path | None = None
    dtype: torch.dtype | None = None
    shard_bytes: int = 4 << 30


class Conversion:
    """A request, opened and planned; nothing is written yet.

    Attributes:
        side: the source.
        spec: its model.
        plan: every weight and the dtype it is written in.
        target: the places of the result.
        to_hf: the result is a Hugging Face folder, otherwise a Megatron checkpoint.
        costs: memory that each weight takes while it is converted.

    Raises:
        NemoRLError: the source is damaged, or no model that is known.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.side, self.spec = open_side(request.source, request.config)
        self.to_hf = isinstance(self.side, MegatronSide)
        weights = weights_of(self.spec)
        dtypes = dtypes_of(self.side, weights, request.dtype)
        self.plan: Plan = list(zip(weights, dtypes, strict=True))
        self._account(weights)
        self.config = request.source
        if self.to_hf:
            self.config = config_of(request.source, request.config)
        kind = HfTarget if self.to_hf else MegatronTarget
        self.target: Target = kind(
            self.spec, self.plan, request.shard_bytes, self.config
        )
        self.costs = []
        for weight, dtype in self.plan:
            own = self.side.dtypes(weight)[0].itemsize
            self.costs.append(math.prod(weight.shape) * (own + dtype.itemsize))

    @property
    def bytes(self) -> int:
        """Of all weights in the result."""
        return sum(self.size(number) for number in range(len(self.plan)))

    @property
    def largest(self) -> int:
        """Bytes of the largest weight on its larger side."""
        sizes = []
        for weight, dtype in self.plan:
            width = max(dtype.itemsize, self.side.dtypes(weight)[0].itemsize)
            sizes.append(math.prod(weight.shape) * width)
        return max(sizes)

    def size(self, number: int) -> int:
        """Bytes of a weight in the result."""
        weight, dtype = self.plan[number]
        return math.prod(weight.shape) * dtype.itemsize

    def result(self, folder: Path) -> Side:
        """The result, opened as anybody would open it."""
        kind = HfSide if self.to_hf else MegatronSide
        return kind(folder, self.spec)

    def tensors(self, digests: dict[str, str]) -> dict[str, dict[str, Any]]:
        """The manifest's entries of all Hugging Face tensors."""
        found = {}
        for weight, dtype in self.plan:
            for name, dims in weight.rule.hf.items():
                shape = self.spec.shape(dims)
                found[name] = {
                    "dtype": str(dtype).removeprefix("torch."),
                    "shape": list(shape),
                    "bytes": math.prod(shape) * dtype.itemsize,
                    "digest": digests[name],
                }
        return found

    def identity(self) -> dict[str, Any]:
        """What must be the same for a conversion to be continued; JSON."""
        files = {}
        found = [p for kind in _WEIGHT_FILES for p in self.side.folder.glob(kind)]
        for path in sorted(found):
            with open(path, "rb") as file:
                head = xxhash.xxh3_128_hexdigest(file.read(_HEAD))
            status = path.stat()
            files[path.name] = [status.st_size, status.st_mtime_ns, head]
        config = (self.config / "config.json").read_bytes()
        return {
            "nemo_rl": nemo_rl.__version__,
            "to": "hf" if self.to_hf else "megatron",
            "files of the source": files,
            "config.json": xxhash.xxh3_128_hexdigest(config),
            "--dtype": str(self.request.dtype).removeprefix("torch."),
            "size of a shard": self.request.shard_bytes,
            "parts": len(self.plan),
        }

    def _account(self, weights: list[Weight]) -> None:
        """Every tensor of the source goes into one weight."""
        counts = Counter(name for weight in weights for name in weight.rule.hf)
        places = Counter((weight.key, weight.index) for weight in weights)
        if twice := [n for n, c in counts.items() if c > 1]:
            raise ConfigurationError(f"{self.side.folder}: used twice: {some(twice)}")
        if twice := [f"{key} {index}" for (key, index), c in places.items() if c > 1]:
            raise ConfigurationError(f"{self.side.folder}: made twice: {some(twice)}")
