"""Write a Megatron checkpoint anew in the pieces that another layout would write.

The content stays the same. Weights, and an optimizer that is stored in the shapes of
the weights, are divided anew; everything else is copied byte for byte.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_rl.converters.bridge import MegatronSide, Weight, find_weights, weights_of
from nemo_rl.converters.conversion import config_of
from nemo_rl.converters.families import model_spec
from nemo_rl.converters.formats.dist_checkpoint import DistCheckpoint
from nemo_rl.converters.formats.dist_index import COMMON, FORMAT, INDEX
from nemo_rl.converters.formats.dist_writer import DistCheckpointWriter
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.converters.layout import (
    Layout,
    check_layout,
    padded_shape,
    pieces_of,
    stage_of,
)
from nemo_rl.converters.manifest import MANIFEST, read_manifest, write_manifest
from nemo_rl.converters.model_spec import ModelSpec
from nemo_rl.converters.output import Progress, check_same, check_target, quiet
from nemo_rl.converters.transforms import pad_rows
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError
from nemo_rl.utils.files import sha256_of, write_json
from nemo_rl.utils.publish import publish_folder

_REST = "__0_1.distcp"
"""File of what is copied as it is."""
_MANIFEST = "manifest.json"
"""Of a training checkpoint: names of its files, with sizes and hashes."""


class Resharding:
    """A checkpoint, opened, and the layout it shall have.

    Args:
        source: distributed checkpoint, or a training checkpoint around one.
        layout: of the result.
        config: Hugging Face folder of the model; None for the one in the checkpoint.

    Attributes:
        weights: of the model, as the checkpoint stores them.
        kinds: what stands before the key of a weight in each entry that is divided as
            it is: nothing, or ``optimizer.state.exp_avg.``.
        rest: entries that are copied.

    Raises:
        NemoRLError: no such checkpoint, one that does not fit its configuration, or
            sizes that do not divide the model.
    """

    def __init__(
        self, source: Path, layout: Layout, config: Path | None = None
    ) -> None:
        if not source.is_dir():
            raise ConfigurationError(f"{source} is not a folder")
        self.place, self.layout = find_weights(source), layout
        folder = config_of(source, config)
        self.spec: ModelSpec = model_spec(
            read_hf_config(folder), source=str(folder / "config.json")
        )
        check_layout(self.spec, layout)
        side = MegatronSide(self.place, self.spec)
        self.checkpoint = side.checkpoint
        self.weights = self._weights()
        self.kinds = self._kinds()
        mine = {kind + w.key for w in self.weights for kind in self.kinds[w.key]}
        every = set(self.checkpoint.tensors) | self.checkpoint.objects
        self.rest = sorted(every - mine)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self.checkpoint.tensors.values())

    def _weights(self) -> list[Weight]:
        for stacked in (True, False):
            weights = weights_of(self.spec, stacked=stacked)
            if all(w.key in self.checkpoint.tensors for w in weights):
                return weights
        raise CheckpointError(f"{self.place} does not hold the weights of its model")

    def _kinds(self) -> dict[str, list[str]]:
        """Entries of the shape of a weight, by the weight's key."""
        tensors = self.checkpoint.tensors
        found = {weight.key: [""] for weight in self.weights}
        for key, stored in tensors.items():
            match = re.fullmatch(r"(optimizer\.state\.[^.]+\.)(.+)", key)
            if match and match[2] in found and stored.shape == tensors[match[2]].shape:
                found[match[2]].append(match[1])
        return found

    def entries(self, stage: int) -> Iterator[tuple[str, Weight]]:
        """(key, weight) of what the ranks of a pipeline stage write."""
        for weight in self.weights:
            if stage_of(weight, self.spec, self.layout) == stage:
                for kind in self.kinds[weight.key]:
                    yield kind + weight.key, weight

    def read(self, key: str, weight: Weight) -> Tensor:
        """A tensor with as much padding of the vocabulary as the layout has."""
        rows = padded_shape(weight, self.spec, self.layout)
        full = self.checkpoint.read(key, weight.index)
        if full.shape == rows:
            return full
        return pad_rows(full[: self.spec.vocab_size], rows[0])


def _write(work: Resharding, folder: Path, progress: Progress) -> None:
    writer = DistCheckpointWriter(folder)
    try:
        for stage in range(work.layout.pp):
            for key, weight in work.entries(stage):
                full = work.read(key, weight)
                size = (*weight.stack, *full.shape)
                for piece in pieces_of(weight, work.spec, work.layout):
                    box = zip(piece.offsets, piece.sizes, strict=True)
                    part = full[tuple(slice(o, o + s) for o, s in box)]
                    stacked = part.reshape(*[1] * len(weight.stack), *piece.sizes)
                    offsets = (*weight.index, *piece.offsets)
                    file = f"__{piece.rank}_0.distcp"
                    writer.add_chunk(key, stacked, offsets, size, file)
                progress(full.nbytes)
                work.checkpoint.release(key, weight.index)
            # The files of a stage are complete; another one has others.
            writer.close()
        for key in work.rest:
            writer.copy(work.checkpoint, key, _REST)
        writer.finish_index()
    finally:
        writer.close()
    for name in (COMMON, FORMAT):
        if (work.place / name).exists():
            shutil.copy2(work.place / name, folder / name)


def _compare(work: Resharding, folder: Path, progress: Progress) -> None:
    """Read the result back and compare it with the source, piece by piece."""
    result = DistCheckpoint(folder)
    source = work.checkpoint
    if result.tensors.keys() != source.tensors.keys() or result.objects != (
        source.objects
    ):
        raise CheckpointError(f"{folder} has other entries once it is read back")
    for stage in range(work.layout.pp):
        for key, weight in work.entries(stage):
            found = result.read(key, weight.index)
            check_same(key, work.read(key, weight), found, folder)
            progress(found.nbytes)
            source.release(key, weight.index)
            result.release(key, weight.index)
    for key in work.rest:
        if dict(source.stored(key)) != dict(result.stored(key)):
            raise CheckpointError(f"{key} differs once {folder} is read back")


def reshard(
    source: Path,
    target: Path,
    layout: Layout,
    *,
    config: Path | None = None,
    progress: Progress = quiet,
) -> Resharding:
    """Write a checkpoint in the pieces of a layout.

    Whatever else is in the folder of the source, such as the state of a training, is
    copied, so that training resumes from the result as from the source.

    Args:
        source: distributed checkpoint, or a training checkpoint around one.
        target: must not exist.
        layout: of the result.
        config: Hugging Face folder of the model; None for the one in the checkpoint.
        progress: called while tensors are written and compared.

    Returns:
        What was done.

    Raises:
        NemoRLError: see ``Resharding``; or the result could not be written, or differs
            once it is read back.
    """
    work = Resharding(source, layout, config)
    check_target(target, work.nbytes)
    inside = work.place.relative_to(source)
    data = {path.resolve() for path in work.place.glob("*.distcp")}
    data |= {(work.place / name).resolve() for name in (INDEX, COMMON, FORMAT)}

    def left_out(folder: str, names: list[str]) -> set[str]:
        here = Path(folder).resolve()
        return {name for name in names if here / name in data or name == MANIFEST}

    def write(folder: Path) -> None:
        shutil.copytree(source, folder, ignore=left_out, dirs_exist_ok=True)
        _write(work, folder / inside, progress)
        _compare(work, folder / inside, progress)
        if (folder / _MANIFEST).exists():
            _update_manifest(folder, inside)
        if (work.place / MANIFEST).exists():
            # The tensors are those of the conversion; the files are others.
            manifest = read_manifest(work.place)
            write_manifest(folder / inside, manifest["tensors"], manifest["made"])

    publish_folder(target, write)
    return work


def _update_manifest(folder: Path, inside: Path) -> None:
    """Make the manifest of a training checkpoint list the files that are there now.

    Raises:
        CheckpointError: it is damaged.
    """
    path = folder / _MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = dict(manifest["files"])
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path} is not a manifest: {error!r}") from None
    prefix = f"{inside.as_posix()}/"
    kept = {name: entry for name, entry in files.items() if not name.startswith(prefix)}
    for file in sorted((folder / inside).rglob("*")):
        if file.is_file():
            entry = {"size": file.stat().st_size, "sha256": sha256_of(file)}
            kept[file.relative_to(folder).as_posix()] = entry
    write_json(path, {**manifest, "files": dict(sorted(kept.items()))})
