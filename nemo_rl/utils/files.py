"""Files that survive a crash: durable writes, hashes, and JSONL cut at a step.

Knows nothing about checkpoints or metrics. Every function leaves either the old
content or the new one behind, never a mixture, also when the process is killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def fsync_path(path: Path) -> None:
    """Force a file or a folder's list of names to the disk.

    Raises:
        OSError: the file system could not store it (for example: disk full).
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(root: Path) -> None:
    """Force every file and folder below `root`, and `root`, to the disk."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            fsync_path(Path(folder) / name)
        fsync_path(Path(folder))


def write_json(path: Path, payload: Any) -> None:
    """Write JSON so that `path` holds the old text or the new one, never less.

    Raises:
        OSError: it could not be written; `path` is then unchanged.
    """
    write_text(path, json.dumps(payload, indent=2, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically and durably (see `write_json`)."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `(line, row)` of each whole line; a torn last line is left out."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield line, row


def cut_jsonl(path: Path, last_step: int) -> int:
    """Keep the rows of `path` whose `step` is at most `last_step`.

    A killed run has written rows of steps that its newest checkpoint does not
    contain. They would appear twice after a resume, so they are removed. Torn and
    unreadable lines go too.

    Returns:
        The number of rows kept (0 where the file does not exist).
    """
    if not path.exists():
        return 0
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    kept = 0
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            for line, row in read_jsonl(path):
                if row.get("step", 0) <= last_step:
                    file.write(line)
                    kept += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)
    return kept


def prepare_jsonl(path: Path, resume_step: int | None) -> None:
    """Make `path` ready to be appended to by a run that goes on after a step.

    A resumed run (`resume_step` > 0) keeps the rows up to that step. A fresh run
    starts an empty file; rows that an earlier run left there are moved to
    `<name>.earlier-<n><suffix>` beside it, never deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if resume_step:
        cut_jsonl(path, resume_step)
    elif path.exists() and path.stat().st_size > 0:
        number = 1
        while (aside := _earlier(path, number)).exists():
            number += 1
        os.replace(path, aside)


def _earlier(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.earlier-{number}{path.suffix}")


def remove_tree(path: Path) -> None:
    """Remove a folder if it is there; one that cannot go is left with a warning.

    (NFS keeps a file that somebody has open; the next start removes it.)
    """
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("cannot remove %s: %s", path, error)


def probe_folder(directory: Path) -> None:
    """Try what a save needs: create a file, force it to disk, rename it.

    Raises:
        OSError: the first of these that failed.
    """
    probe = directory / f".probe-{os.getpid()}"
    renamed = directory / f".probe-renamed-{os.getpid()}"
    try:
        probe.write_bytes(b"x" * 4096)
        fsync_path(probe)
        os.rename(probe, renamed)
    finally:
        for leftover in (probe, renamed):
            with contextlib.suppress(OSError):
                leftover.unlink()


def human_size(count: int) -> str:
    """Bytes for people: 1.5 GiB."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
