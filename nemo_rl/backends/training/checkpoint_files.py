"""What the checkpoints of all engines have in common: contents, companions, errors.

A checkpoint is a folder: ``weights`` (the engine's own format), ``generators``, ``hf``
(configuration and tokenizer) and ``contents.json``.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.api import CheckpointException

from nemo_rl.converters.formats.hf import HF_PART, copy_companions, write_config
from nemo_rl.utils.exceptions import CheckpointError

WEIGHTS, GENERATORS = "weights", "generators"
_CONTENTS = "contents.json"
_UNWRITABLE = (
    OSError,
    CheckpointException,  # torch's own, a BaseException
    RuntimeError,
)
# What readers of JSON, pickles, archives and shards raise for a file cut or altered.
_UNREADABLE = (
    *_UNWRITABLE,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    CheckpointError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)


@contextmanager
def writing(path: Path, *errors: type[BaseException]) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint is written into a CheckpointError.

    Args:
        path: the checkpoint, named in the message.
        *errors: further kinds that the engine's library raises.
    """
    try:
        yield
    except (*_UNWRITABLE, *errors) as error:
        raise CheckpointError(
            f"could not write the checkpoint in {path}: {_reason(error)}. Check that "
            "the disk has room and that every node sees checkpointing.checkpoint_dir."
        ) from error


@contextmanager
def reading(path: Path, *errors: type[BaseException]) -> Iterator[None]:
    """Turn what goes wrong while a checkpoint is read into a CheckpointError."""
    try:
        yield
    except (*_UNREADABLE, *errors) as error:
        raise CheckpointError(
            f"could not read the checkpoint in {path}: {_reason(error)}. It may be "
            "damaged or belong to another model; move it away to start from the base "
            "weights."
        ) from error


def _reason(error: BaseException) -> str:
    """One line; torch's own exception lists a traceback per rank."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def write_description(
    path: Path, source: Path, changes: Mapping[str, Any], **contents: Any
) -> None:
    """Write what makes the checkpoint a whole model; one rank calls it.

    Args:
        path: the checkpoint.
        source: Hugging Face folder whose configuration and tokenizer are kept.
        changes: entries of config.json that differ from its own.
        **contents: facts for ``read_contents``.
    """
    (path / _CONTENTS).write_text(json.dumps(contents) + "\n")
    (path / HF_PART).mkdir(exist_ok=True)
    copy_companions(source, path / HF_PART)
    write_config(path / HF_PART, changes)


def read_contents(path: Path, engine: str) -> dict[str, Any]:
    """The facts given to ``write_description``.

    Args:
        path: the checkpoint.
        engine: the one that reads; its name is the fact ``engine``.

    Raises:
        CheckpointError: missing or damaged, or written by another engine.
    """
    with reading(path):
        contents = dict(json.loads((path / _CONTENTS).read_text()))
    writer = contents.get("engine", "megatron")
    if writer != engine:
        raise CheckpointError(
            f"the checkpoint in {path} was written by the training backend {writer!r} "
            f"and {engine!r} is on. Go on with {writer!r}, or choose another "
            "checkpointing.checkpoint_dir and start from the weights alone: name a "
            "Hugging Face folder of them in policy.model_name."
        )
    return contents
