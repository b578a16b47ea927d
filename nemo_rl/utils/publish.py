"""A folder that appears under its name complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from nemo_rl.utils.exceptions import CheckpointError
from nemo_rl.utils.files import fsync_path, fsync_tree, remove_tree


def publish_folder(final: Path, write: Callable[[Path], None]) -> Path:
    """Fill a hidden folder beside ``final``, force it to disk, rename it.

    An earlier folder of that name is replaced once the new one is whole.

    Raises:
        CheckpointError: it could not be written; the earlier folder is untouched.
    """
    temporary = final.with_name(f".{final.name}.tmp-{os.getpid()}")
    old = final.with_name(f".{final.name}.old-{os.getpid()}")
    try:
        remove_tree(temporary)
        temporary.mkdir(parents=True)
        write(temporary)
        fsync_tree(temporary)
        if final.exists():
            os.rename(final, old)
        os.rename(temporary, final)
        fsync_path(final.parent)
    except OSError as error:
        raise CheckpointError(f"{final} could not be written: {error}") from error
    finally:
        remove_tree(temporary)
        if old.exists() and not final.exists():
            os.rename(old, final)
        remove_tree(old)
    return final
