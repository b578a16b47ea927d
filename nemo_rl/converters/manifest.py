"""What a folder holds, with sizes and digests, in a file beside it.

Digests are XXH3 of 128 bits: they find damage and mistakes, not forgery.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash
from torch import Tensor

from nemo_rl.converters.bridge import some
from nemo_rl.converters.formats.archive import raw
from nemo_rl.utils.exceptions import CheckpointError

MANIFEST = "nemo_rl_manifest.json"
_WINDOW = 64 << 20
_FORMAT = 1


def digest(tensor: Tensor) -> str:
    """Of the bytes of a tensor in the order of its elements."""
    return xxhash.xxh3_128_hexdigest(raw(tensor))


def digest_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Of the bytes of a file, which is mapped and read window by window.

    Raises:
        OSError: it cannot be read.
    """
    state = xxhash.xxh3_128()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for start in range(0, size, _WINDOW):
            length = min(_WINDOW, size - start)
            with mmap.mmap(
                file.fileno(), length, access=mmap.ACCESS_READ, offset=start
            ) as window:
                state.update(window)
            if progress is not None:
                progress(length)
    return state.hexdigest()


def write_manifest(
    folder: Path, tensors: Mapping[str, Mapping[str, Any]], made: Mapping[str, Any]
) -> None:
    """Describe a finished folder.

    Args:
        folder: all its files are read.
        tensors: name to dtype, shape, bytes and digest.
        made: what made it, and from what.

    Raises:
        OSError: a file cannot be read, or the manifest not be written.
    """
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "digest": digest_file(path),
        }
        for path in _files(folder)
    }
    content = {
        "format": _FORMAT,
        "digest": "xxh3_128",
        "made": dict(made),
        "files": files,
        "tensors": dict(tensors),
    }
    # In place: the folder has no name yet, and a kill must leave no other file in it.
    (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}, expected {_FORMAT}")
        for name, entry in content["files"].items():
            if ".." in Path(name).parts or Path(name).is_absolute():
                raise ValueError(f"{name} is not a file of its folder")
            entry["bytes"], entry["digest"]
        for entry in content["tensors"].values():
            entry["bytes"], entry["digest"]
        return content
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} has no {MANIFEST}: no conversion wrote it. Compare it with "
            "another folder: verify A B."
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a readable manifest: {error!r}") from None


def check_files(
    folder: Path,
    manifest: Mapping[str, Any],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Read every file of a folder and compare it with the manifest.

    Raises:
        CheckpointError: files are missing or differ; all of them are named.
    """
    wrong = []
    for name, entry in manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry["bytes"]:
                wrong.append(f"{name} has {size} bytes, expected {entry['bytes']}")
            else:
                _forget(path)
                if digest_file(path, progress) != entry["digest"]:
                    wrong.append(f"{name} has other content")
        except OSError as error:
            wrong.append(f"{name} cannot be read ({error.strerror})")
    if wrong:
        raise CheckpointError(
            f"{folder} is not what {MANIFEST} describes: {some(wrong)}"
        )


def _forget(path: Path) -> None:
    """Ask the kernel to read a file from the disk the next time."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> Iterable[Path]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if path.name != MANIFEST)
