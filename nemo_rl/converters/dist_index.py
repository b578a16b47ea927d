"""The index of a distributed checkpoint, ``.metadata``, read without running any code.

It is a pickle, and a pickle may run whatever it names: only the classes that make up
an index are built.
"""

from __future__ import annotations

import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from nemo_rl.utils.exceptions import CheckpointError

INDEX = ".metadata"
_INDEX_MODULES = (
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.planner",
)
_INDEX_NAMES = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
    ("collections", "OrderedDict"),
}


class _IndexUnpickler(pickle.Unpickler):
    """Builds the classes of an index and nothing else: a pickle may run any code."""

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(
            getattr(torch, name, None), torch.dtype
        )
        known = module in _INDEX_MODULES and "." not in name
        if module in ("pathlib", "pathlib._local") and name.endswith("Path"):
            return PurePosixPath  # where torch wrote it; no one asks
        if dtype or known or (module, name) in _INDEX_NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_index(folder: Path) -> Metadata:
    """The index of a checkpoint, read without running what it may hold.

    Raises:
        CheckpointError: there is none, or it is damaged or no index.
    """
    path = folder / INDEX
    try:
        with open(path, "rb") as file:
            index = _IndexUnpickler(file).load()
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} is not a Megatron checkpoint of the format torch_dist: it has "
            f"no {INDEX}. Expected the folder that holds it, such as "
            "checkpoints/step_000010/policy/weights."
        ) from None
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a readable index: {error}") from None
    except (ValueError, TypeError, LookupError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from None
    if not isinstance(index, Metadata) or index.storage_data is None:
        raise CheckpointError(f"{path} holds {type(index).__name__}, not an index")
    return index
