"""`nemo-rl launch import-image`: an image becomes a .sqsh file, once.

Of two imports of one file the second waits and uses the first's result. The file
appears as a whole, with its digest beside it in <file>.json.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nemo_rl.launch.driver import guarded
from nemo_rl.utils.exceptions import LaunchError
from nemo_rl.utils.files import sha256_of, write_json

SUFFIX = ".json"


def import_image(source: str, output: Path, *, force: bool = False) -> dict[str, Any]:
    """Import an image by enroot, unless the file is there already.

    Args:
        source: "docker://registry#name:tag", or the name:tag of a local Docker image.
        output: the .sqsh file.
        force: import again, because the tag may name another image by now.

    Returns:
        What is recorded beside the file: source, sha256, bytes, seconds.

    Raises:
        LaunchError: there is no enroot here, or it failed; the file is there from
            another source.
    """
    uri = source if "://" in source else f"dockerd://{source}"
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    began = time.time()
    with _locked(output.with_name(output.name + ".lock")):
        known = recorded(output)
        # The file of whom we waited for is newer than our question.
        waited = known is not None and output.stat().st_mtime >= began
        if known is not None and (waited or not force):
            if known["source"] != uri:
                raise LaunchError(
                    f"{output} was imported from {known['source']}, not from {uri}: "
                    "choose another --output, or --force."
                )
            return known
        if output.exists() and known is None and not force:
            raise LaunchError(
                f"{output} exists and was not written by import-image: choose another "
                "--output, or --force to replace it."
            )
        return _run_enroot(uri, output)


def recorded(output: Path) -> dict[str, Any] | None:
    """Return what is recorded beside an image, None where there is none."""
    try:
        text = output.with_name(output.name + SUFFIX).read_text(encoding="utf-8")
        known = json.loads(text)
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    whole = output.is_file() and output.stat().st_size == known.get("bytes")
    return known if whole else None


def _run_enroot(uri: str, output: Path) -> dict[str, Any]:
    partial = output.with_name(f".{output.name}.partial")
    partial.unlink(missing_ok=True)  # Of an import that was killed.
    began = time.monotonic()
    try:
        done = subprocess.run(
            ["enroot", "import", "--output", str(partial), uri],
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise LaunchError(
            "enroot is not installed here: run this where it is (a compute node, "
            "often), or build a .sif with containers/build.sh."
        ) from None
    if done.returncode or not partial.is_file():
        partial.unlink(missing_ok=True)
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise LaunchError(
            f"enroot import {uri} ended with {done.returncode} and left no image:\n"
            f"{last}"
        )
    entry = {
        "source": uri,
        "sha256": sha256_of(partial),
        "bytes": partial.stat().st_size,
        "seconds": round(time.monotonic() - began, 1),
    }
    # The record first: a file without its record would be taken for somebody else's.
    write_json(output.with_name(output.name + SUFFIX), entry)
    partial.replace(output)
    return entry


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another import of {path.stem}", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(argv: Sequence[str], prog: str = "nemo-rl launch import-image") -> int:
    """Command line: SOURCE --output FILE [--force]."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument(
        "source", help="docker://registry#name:tag, or a local name:tag"
    )
    parser.add_argument("--output", type=Path, required=True, help="the .sqsh file")
    parser.add_argument("--force", action="store_true", help="replace what is there")
    options = parser.parse_args(argv)

    def run() -> int:
        entry = import_image(options.source, options.output, force=options.force)
        print(f"{options.output}: {entry['bytes']} bytes, sha256 {entry['sha256']}")
        return 0

    return guarded(run, debug=False)
