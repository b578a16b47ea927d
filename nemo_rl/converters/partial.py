"""The hidden folder beside a target in which a result grows, and survives a kill.

``.NAME.partial`` holds ``result``, which is renamed to NAME in the end; ``journal``,
which says what work this is and which parts of it are safely on the disk; and ``lock``,
held by the process that works on it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_rl.utils.exceptions import CheckpointError
from nemo_rl.utils.files import fsync_path, fsync_tree, human_size, remove_tree

Done = dict[str, str]
"""What is known of a finished part: the digest of each of its tensors."""


def partial_of(target: Path) -> Path:
    """The hidden folder of a target."""
    return target.with_name(f".{target.name}.partial")


def sweep(target: Path) -> None:
    """Remove what a process leaves that is killed after it gave a result its name."""
    place = partial_of(target)
    if not (place / "result").exists():
        remove_tree(place)


class PartialFolder:
    """The unfinished result of one piece of work, held by this process alone.

    Args:
        target: the final name; must not exist.
        work: what is done, JSON; the same work continues, other work does not.
        resume: continue what an earlier process left.

    Attributes:
        result: the folder to write to.
        done: number of a finished part to what is known of it.

    Raises:
        CheckpointError: somebody else works on it; it was begun and ``resume`` is
            false; or what was begun is other work.
    """

    def __init__(self, target: Path, work: Mapping[str, Any], *, resume: bool) -> None:
        self.target, self.place = target, partial_of(target)
        self.result = self.place / "result"
        self.done: dict[int, Done] = {}
        self._journal = self.place / "journal"
        self._lock = self._take_lock()
        try:
            if not self._read_journal(work, resume):
                self._begin(work)
        except BaseException:
            self.close()
            raise

    def record(self, parts: Mapping[int, Done]) -> None:
        """Note that parts of the work are done; their files are safe on the disk.

        Raises:
            OSError: it could not be stored.
        """
        lines = "".join(json.dumps([n, d]) + "\n" for n, d in parts.items())
        with open(self._journal, "a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        self.done.update(parts)

    def publish(self) -> None:
        """Give the result its name; it is complete.

        Raises:
            CheckpointError: the name was taken in the meantime.
            OSError: it could not be renamed.
        """
        fsync_tree(self.result)
        if self.target.exists():
            raise CheckpointError(
                f"{self.target} was made by somebody else in the meantime. Move it "
                "away and run this again with --resume."
            )
        os.rename(self.result, self.target)
        fsync_path(self.target.parent)
        self.remove()

    def remove(self) -> None:
        """Throw away what there is, first what it says of itself."""
        self._journal.unlink(missing_ok=True)
        remove_tree(self.place)
        self.close()

    def close(self) -> None:
        """Let somebody else work on it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take_lock(self) -> int:
        path = self.place / "lock"
        while True:
            self.place.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever had it may have removed the folder just before.
                if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise CheckpointError(
                    f"another process is writing {self.target} (it holds {path}). "
                    "Wait for it, or choose another name."
                ) from None
            except FileNotFoundError:
                pass
            os.close(descriptor)

    def _begin(self, work: Mapping[str, Any]) -> None:
        remove_tree(self.result)
        self.result.mkdir()
        temporary = self._journal.with_suffix(".new")
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(json.dumps(work) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, self._journal)
        fsync_path(self.place)
        fsync_path(self.place.parent)

    def _read_journal(self, work: Mapping[str, Any], resume: bool) -> bool:
        """Whether there is something to continue; a torn last line is cut off."""
        if not self._journal.exists() or not self.result.is_dir():
            return False
        data = self._journal.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            earlier, *lines = [json.loads(line) for line in whole.splitlines()]
            self.done = {int(number): dict(done) for number, done in lines}
        except ValueError as error:
            raise CheckpointError(
                f"{self._journal} is damaged ({error}). Remove {self.place} and start "
                "again."
            ) from None
        if not resume:
            held = sum(f.stat().st_blocks for f in self.result.rglob("*")) * 512
            raise CheckpointError(
                f"{self.target} was begun before: {len(self.done)} of "
                f"{earlier.get('parts')} weights are written, {human_size(held)}. "
                f"Continue with --resume, or remove {self.place}."
            )
        if earlier != work:
            names = sorted({*earlier, *work})
            changes = [
                _change(name, earlier.get(name), work.get(name))
                for name in names
                if earlier.get(name) != work.get(name)
            ]
            raise CheckpointError(
                f"{self.place} was begun with something else: "
                f"{'; '.join(changes)}. Continue with the same source and options, or "
                "remove it."
            )
        os.truncate(self._journal, len(whole))
        return True


def _change(name: str, before: object, now: object) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
        return f"{name}: {', '.join(keys[:3])} changed"
    return f"{name} was {before}, is {now}"
