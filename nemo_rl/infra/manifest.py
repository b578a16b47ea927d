"""What a checkpoint folder must contain: written last, checked before a resume.

Knows nothing about steps to keep or models; it lists files with sizes and hashes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_rl.utils.files import sha256_of, write_json

MANIFEST_NAME = "manifest.json"
STATE_NAME = "trainer_state.json"
FORMAT = 1

# Hashing terabytes of weights would double the time of a save; a short write, the
# usual damage, shows in the size already.
HASHED_UP_TO_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        step: training steps completed when the checkpoint was taken.
        fingerprint: what was trained, name -> value.
        metrics: the metrics known at this step, name -> number.
        files: relative path -> {"size": bytes, "sha256": hex or None}.
    """

    step: int
    fingerprint: dict[str, Any]
    metrics: dict[str, float]
    files: dict[str, dict[str, Any]] = field(repr=False)


class ManifestError(Exception):
    """A checkpoint folder is damaged; the message names the file. Internal."""


def write_manifest(
    root: Path,
    *,
    step: int,
    fingerprint: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> Manifest:
    """List every file below `root` in `root/manifest.json`.

    Raises:
        OSError: a file could not be read or the manifest not be written.
    """
    files = {
        path.relative_to(root).as_posix(): _entry(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }
    manifest = Manifest(
        step=step, fingerprint=dict(fingerprint), metrics=dict(metrics), files=files
    )
    payload = {"format": FORMAT, **vars(manifest)}
    write_json(root / MANIFEST_NAME, payload)
    return manifest


def read_manifest(root: Path) -> Manifest:
    """Read `root/manifest.json`.

    Raises:
        ManifestError: it is missing, unreadable, or of another format.
    """
    path = root / MANIFEST_NAME
    try:
        payload = json.loads(path.read_text(encoding="utf-8"))
        found = payload.pop("format")
        if found != FORMAT:
            raise ManifestError(
                f"{path} has format {found}, this version reads {FORMAT}"
            )
        return Manifest(**payload)
    except FileNotFoundError:
        raise ManifestError(f"{path} is missing") from None
    except (
        OSError,
        KeyError,
        TypeError,
        AttributeError,
        UnicodeDecodeError,
        json.JSONDecodeError,
    ) as error:
        raise ManifestError(f"{path} cannot be read: {error}") from error


def verify(root: Path) -> Manifest:
    """Check every listed file for its size and, where listed, its hash.

    Raises:
        ManifestError: the first file that differs, with both values.
    """
    manifest = read_manifest(root)
    for name, expected in manifest.files.items():
        path = root / name
        try:
            size = os.stat(path).st_size
            if size != expected["size"]:
                raise ManifestError(
                    f"{path} has {size} bytes, the manifest says {expected['size']}"
                )
            if expected["sha256"] and sha256_of(path) != expected["sha256"]:
                raise ManifestError(f"{path} has other content than was saved")
        except FileNotFoundError:
            raise ManifestError(f"{path} is missing") from None
        except OSError as error:
            raise ManifestError(f"{path} cannot be read: {error}") from error
    return manifest


def _entry(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    small = size <= HASHED_UP_TO_BYTES
    return {"size": size, "sha256": sha256_of(path) if small else None}
