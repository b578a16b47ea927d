"""Hugging Face folders from and to plain torch.distributed.checkpoint folders.

A DTensor or FSDP2 trainer writes ``save({"model": state_dict, "optim": ...})``. One
tensor is read at a time; no process group and no model is made.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from nemo_rl.converters.bridge import check_tensors, some
from nemo_rl.converters.conversion import config_of
from nemo_rl.converters.families import model_spec
from nemo_rl.converters.formats.dcp_names import (
    EMBEDDING,
    OUTPUT,
    Expected,
    Found,
    expected_of,
    find_model,
)
from nemo_rl.converters.formats.dist_checkpoint import DistCheckpoint
from nemo_rl.converters.formats.dist_index import FORMAT, INDEX
from nemo_rl.converters.formats.dist_writer import DistCheckpointWriter
from nemo_rl.converters.formats.hf import (
    HF_PART,
    HfWeights,
    copy_companions,
    write_config,
)
from nemo_rl.converters.formats.safetensors_stream import DTYPE_NAMES, Announced
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.converters.output import (
    SHARD_BYTES,
    HfResult,
    Progress,
    check_same,
    check_target,
    prevalent,
    publish_hf,
    quiet,
    same_bits,
    total_bytes,
)
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError
from nemo_rl.utils.publish import publish_folder

PREFIX = "model."
"""What ``save({"model": state_dict})`` puts before every name."""


def open_dcp(
    folder: Path, expected: Expected, prefix: str | None = None
) -> tuple[DistCheckpoint, Found]:
    """Open a checkpoint and account for the tensors of the model.

    Raises:
        ConfigurationError: the folder is no such checkpoint.
        CheckpointError: see ``find_model``; or a tensor has another shape.
    """
    if not (folder / INDEX).exists():
        raise ConfigurationError(
            f"{folder} is not a folder of torch.distributed.checkpoint: it has no "
            f"{INDEX}. Expected the folder that was given to save() as checkpoint_id."
        )
    if (folder / FORMAT).exists():
        raise ConfigurationError(
            f"{folder} is Megatron's, its {FORMAT} says. Use megatron-to-hf."
        )
    checkpoint = DistCheckpoint(folder)
    try:
        found = find_model(
            [*checkpoint.tensors, *checkpoint.objects], expected, prefix=prefix
        )
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    wrong = set()
    for name, key in found.keys.items():
        stored = checkpoint.tensors.get(key)
        shape = expected.shapes[EMBEDDING if name == OUTPUT and expected.tied else name]
        if stored is None or stored.shape != shape:
            what = "no tensor" if stored is None else f"{list(stored.shape)}"
            wrong.add(f"{key} is {what}, expected {list(shape)}")
        elif stored.dtype not in DTYPE_NAMES:
            wrong.add(f"{key} is {stored.dtype}, expected a float of 16 bits or more")
    if wrong:
        raise CheckpointError(
            f"{folder}: tensors are not what config.json implies: {some(wrong)}."
        )
    return checkpoint, found


def dcp_to_hf(
    source: Path,
    target: Path,
    *,
    config: Path | None = None,
    prefix: str | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = quiet,
) -> list[str]:
    """Write the model of a torch checkpoint as a Hugging Face folder.

    Args:
        source: folder with ``.metadata``.
        target: must not exist.
        config: Hugging Face folder of the model; None for what ``hf_to_dcp`` left.
        prefix: what stands before the names; None to find it out.
        dtype: of the result; None keeps every tensor's own.
        shard_bytes: size of a safetensors shard.
        progress: called while tensors are written and compared.

    Returns:
        The entries that were left alone, such as the optimizer's.

    Raises:
        NemoRLError: see ``open_dcp`` and ``publish_hf``; or the checkpoint holds an
            output layer of its own for a tied model.
    """
    folder = config_of(source, config)
    expected = expected_of(folder)
    checkpoint, found = open_dcp(source, expected, prefix)
    if OUTPUT in found.keys and expected.tied:
        output, embedding = found.keys[OUTPUT], found.keys[EMBEDDING]
        pair = checkpoint.read(output), checkpoint.read(embedding)
        _check_tied(source, output, embedding, pair)
    tensors: list[Announced] = []
    for name, shape in expected.shapes.items():
        own = checkpoint.tensors[found.keys[name]].dtype
        tensors.append((name, shape, expected.dtype(name, own, dtype)))
    dtypes = {name: kind for name, _, kind in tensors}
    result = HfResult(
        tensors,
        lambda name: checkpoint.read(found.keys[name]).to(dtypes[name]),
        folder,
        {"dtype": prevalent(tensors)},
        lambda name: checkpoint.release(found.keys[name]),
        "dcp-to-hf",
    )
    publish_hf(target, result, shard_bytes=shard_bytes, progress=progress)
    return found.left


def _check_tied(
    folder: Path, output: str, embedding: str, pair: tuple[Tensor, Tensor]
) -> None:
    if not same_bits(*pair):
        raise CheckpointError(
            f"{folder}: {output} differs from {embedding}, but config.json ties them. "
            "Set tie_word_embeddings to false in config.json."
        )


def hf_to_dcp(
    source: Path,
    target: Path,
    *,
    prefix: str = PREFIX,
    dtype: torch.dtype | None = None,
    progress: Progress = quiet,
) -> Path:
    """Write a Hugging Face folder as a torch checkpoint of ``{"model": ...}``.

    Every tensor is one chunk, which torch divides as the loading model needs it. A tied
    output layer, which a model's state dict lists again, is a second name, not a copy.

    Args:
        source: Hugging Face folder.
        target: must not exist.
        prefix: what is put before every name.
        dtype: of the result; None keeps every tensor's own.
        progress: called while tensors are written and compared.

    Raises:
        NemoRLError: tensors that do not fit config.json, or a result that could not be
            written or differs once it is read back.
    """
    expected = expected_of(source)
    with HfWeights(source) as weights:
        spec = model_spec(read_hf_config(source), source=str(source / "config.json"))
        check_tensors(weights, spec)
        if expected.tied and OUTPUT in weights:
            pair = weights.tensor(OUTPUT), weights.tensor(EMBEDDING)
            _check_tied(source, OUTPUT, EMBEDDING, pair)
        tensors: list[Announced] = []
        for name, shape in expected.shapes.items():
            own = weights.dtype(name)
            tensors.append((name, shape, expected.dtype(name, own, dtype)))
        check_target(target, total_bytes(tensors))

        def write(folder: Path) -> None:
            _write_dcp(folder, weights, tensors, prefix, progress)
            part = folder / HF_PART
            part.mkdir()
            copy_companions(source, part)
            write_config(part, {"dtype": prevalent(tensors)})
            checkpoint, found = open_dcp(folder, expected, prefix)
            for name, _, kind in tensors:
                tensor = checkpoint.read(found.keys[name])
                check_same(name, weights.tensor(name).to(kind), tensor, folder)
                progress(tensor.nbytes)
                checkpoint.release(found.keys[name])
                weights.release(name)

        return publish_folder(target, write)


def _write_dcp(
    folder: Path,
    weights: HfWeights,
    tensors: list[Announced],
    prefix: str,
    progress: Progress,
) -> None:
    if prefix and not prefix.endswith("."):
        prefix += "."
    outer = tuple(part for part in prefix.split(".") if part)
    names = [name for name, _, _ in tensors]
    writer = DistCheckpointWriter(folder)
    try:
        for name, _, dtype in tensors:
            tensor = weights.tensor(name).to(dtype)
            writer.add(prefix + name, tensor)
            progress(tensor.nbytes)
            weights.release(name)
        if OUTPUT not in names:
            writer.add_again(prefix + OUTPUT, prefix + EMBEDDING)
            names.append(OUTPUT)
        writer.finish_index({prefix + name: (*outer, name) for name in names})
    finally:
        writer.close()
