"""Secrets that tests submit jobs with, and where they must not be found afterwards."""

from __future__ import annotations

from pathlib import Path

SECRETS = {
    "HF_TOKEN": "hf_tokenOfTheTests",
    "WANDB_API_KEY": "wandbKeyOfTheTests",
    "JUDGE_KEY": "judgeKeyOfTheTests",
}
"""In the environment that jobs are submitted from."""


def leaks(*places: Path, also: str = "") -> list[str]:
    """Return which files at or below places hold one of SECRETS, or `also`."""
    wanted = [value.encode() for value in (*SECRETS.values(), also) if value]
    files = [
        path
        for place in places
        for path in ([place] if place.is_file() else place.rglob("*"))
        if path.is_file() and not path.is_symlink()
    ]
    assert files, f"nothing at {places}"
    found = []
    for path in files:
        content = path.read_bytes()
        found += [f"{path}: {value}" for value in wanted if value in content]
    return found
