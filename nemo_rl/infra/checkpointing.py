"""CheckpointManager: a save is whole or absent, and a resume finds the newest whole.

Knows folders, steps and one metric; what a checkpoint contains is the caller's
business. Layout of `checkpointing.checkpoint_dir`::

    step_000010/  policy/ ...  trainer_state.json  manifest.json
    step_000020/  ...
    .step_000030.tmp-4711/     being written; removed by the next start
    .lock                      who writes here
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_rl.infra import checkpoint_errors as errors
from nemo_rl.infra.checkpoint_folders import (
    CheckpointInfo,
    as_json,
    check_fingerprint,
    find_newest,
    info_of,
    recover,
    step_name,
    steps_in,
)
from nemo_rl.infra.lock import DirectoryLock
from nemo_rl.infra.manifest import (
    STATE_NAME,
    Manifest,
    ManifestError,
    read_manifest,
    write_manifest,
)
from nemo_rl.infra.retention import metric_value, numbers, superfluous
from nemo_rl.utils.exceptions import CheckpointError
from nemo_rl.utils.files import (
    fsync_path,
    fsync_tree,
    probe_folder,
    remove_tree,
    write_json,
)

log = logging.getLogger(__name__)

_NEARLY_FULL_BYTES = 64 * 1024 * 1024


class CheckpointManager:
    """Writes, finds and prunes the checkpoints of one run.

    A commit is: write into a hidden folder, force every file to disk, write the
    manifest, rename. A process that dies at any instruction of this leaves the
    checkpoints before it as they were, and at most hidden folders.

    Args:
        config: the `checkpointing` section.
        fingerprint: what is being trained (model, tokenizer, algorithm), name ->
            JSON value. A checkpoint with other values is refused.

    Example::

        manager = CheckpointManager(config.checkpointing, fingerprint={...})
        manager.check_writable()                  # before anything expensive
        found = manager.newest()                  # resume from found.path, or None
        with manager.writing(10, metrics={"val:accuracy": 0.4}) as path:
            policy.save(path / "policy")          # all ranks, into an absolute path
            state.save(path / "trainer_state.json")
        manager.close()
    """

    def __init__(self, config: Any, *, fingerprint: Mapping[str, Any]) -> None:
        """Remember what to do; nothing on disk is touched yet."""
        self.config = config
        self.directory = Path(config.checkpoint_dir).expanduser().absolute()
        self.fingerprint = as_json(fingerprint)
        self._lock = DirectoryLock(self.directory)
        self._damaged: set[int] = set()
        self._warned_about_metric = False

    def check_writable(self, required_bytes: int | None = None) -> None:
        """Find out before training whether a checkpoint can be written.

        Takes the folder's lock, removes what a killed run left, and tries a write
        and a rename.

        Args:
            required_bytes: the expected size of one checkpoint, if known.

        Raises:
            ConfigurationError: the folder cannot be written or has too little room.
            CheckpointError: another live run writes here.
        """
        if not self.config.enabled:
            return
        self._open()
        try:
            probe_folder(self.directory)
        except OSError as error:
            raise errors.unwritable(self.directory, error) from error
        free = shutil.disk_usage(self.directory).free
        if required_bytes is not None and free < required_bytes:
            raise errors.too_small(self.directory, free, required_bytes)

    def newest(self) -> CheckpointInfo | None:
        """The newest whole checkpoint, to resume from; None where there is none.

        A damaged one is skipped with a warning that names the file.

        Raises:
            CheckpointError: every checkpoint is damaged, the newest whole one is of
                another model, or another live run writes here.
            ConfigurationError: `resume` is off, but checkpoints are here already.
        """
        if not self.config.enabled:
            return None
        self._open()
        steps = sorted(steps_in(self.directory), reverse=True)
        if steps and not self.config.resume:
            raise errors.not_resuming(self.directory, step_name(steps[0]))
        found, damage = find_newest(self.directory)
        self._damaged = set(damage)
        if found is None:
            return None
        saved = read_manifest(found.path).fingerprint
        check_fingerprint(found.path, saved, self.fingerprint)
        return found

    @contextlib.contextmanager
    def writing(
        self,
        step: int,
        *,
        metrics: Mapping[str, Any] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Iterator[Path]:
        """Give a folder to fill; commit it when the block ends without an error.

        Files that other nodes write must be closed before the block ends.

        Args:
            step: training steps completed; names the folder.
            metrics: name -> value; `checkpointing.metric_name` is looked up here
                to rank the checkpoint.
            state: written as `trainer_state.json`, unless the block does that.

        Raises:
            CheckpointError: it could not be written (disk full, folder taken over
                by another run). The earlier checkpoints are untouched.
        """
        self._open()
        temporary = self._hidden(step, "tmp")
        try:
            remove_tree(temporary)
            temporary.mkdir()
            if state is not None:
                write_json(temporary / STATE_NAME, dict(state))
            yield temporary
            self._commit(step, temporary, numbers(metrics or {}))
        except (OSError, RuntimeError) as error:
            self._check_lock()
            if isinstance(error, OSError) or self._nearly_full():
                good = [s for s in steps_in(self.directory) if s not in self._damaged]
                raise errors.save_failed(
                    self.directory, step, cause=error, good_steps=good
                ) from error
            raise
        finally:
            remove_tree(temporary)
        self._damaged.discard(step)
        self._prune(latest=step)

    def checkpoints(self) -> list[CheckpointInfo]:
        """All checkpoints with a readable manifest, oldest first, not verified."""
        return [
            info_of(self.directory / step_name(step), manifest)
            for step, manifest in sorted(self._manifests().items())
        ]

    def close(self) -> None:
        """Give the folder back to other runs."""
        self._lock.release()

    def _open(self) -> None:
        """Take the lock; on the first time, clear away what a killed run left."""
        if not self.config.enabled:
            raise CheckpointError("checkpointing.enabled is false: nothing is saved")
        if self._lock.is_mine():
            return
        if self._lock.was_taken and self._lock.holder() is not None:
            raise errors.taken_over(self.directory, self._lock.holder())
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            recover(self.directory)
        except OSError as error:
            raise errors.unwritable(self.directory, error) from error

    def _commit(self, step: int, temporary: Path, metrics: Mapping[str, float]) -> None:
        self._check_lock()
        if not any(path.is_file() for path in temporary.rglob("*")):
            raise CheckpointError(f"nothing was written into checkpoint {temporary}")
        fsync_tree(temporary)
        write_manifest(
            temporary, step=step, fingerprint=self.fingerprint, metrics=metrics
        )
        self._check_lock()
        final = self.directory / step_name(step)
        replaced = None
        if final.exists():
            # A folder cannot be renamed onto a full one. Between the two renames
            # the old one waits under a name that `recover` knows.
            replaced = self._hidden(step, "old")
            remove_tree(replaced)
            os.rename(final, replaced)
        try:
            os.rename(temporary, final)
        except OSError:
            if replaced is not None:
                os.rename(replaced, final)
            raise
        fsync_path(self.directory)
        if replaced is not None:
            remove_tree(replaced)

    def _check_lock(self) -> None:
        if not self._lock.is_mine():
            raise errors.taken_over(self.directory, self._lock.holder())

    def _prune(self, latest: int) -> None:
        """Remove what `retention` does not keep; damaged ones wait for a person."""
        metrics = {s: m.metrics for s, m in self._manifests().items()}
        name = self.config.metric_name
        values = {s: metric_value(m, name) for s, m in metrics.items()}
        if name and values.get(latest) is None:
            self._warn_about_metric(latest, metrics.get(latest, {}))
        for step in superfluous(
            values,
            latest=latest,
            keep_top_k=self.config.keep_top_k,
            higher_is_better=self.config.higher_is_better,
        ):
            trash = self._hidden(step, "trash")
            try:
                os.rename(self.directory / step_name(step), trash)
            except OSError as error:
                log.warning("cannot remove step %d: %s", step, error)
                continue
            remove_tree(trash)

    def _warn_about_metric(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._warned_about_metric:
            return
        self._warned_about_metric = True
        log.warning(
            "checkpointing.metric_name=%s is not among the metrics of step %d (%s); "
            "such checkpoints rank below those that have it",
            self.config.metric_name,
            step,
            ", ".join(sorted(metrics)) or "none",
        )

    def _manifests(self) -> dict[int, Manifest]:
        found = {}
        for step in steps_in(self.directory):
            if step not in self._damaged:
                with contextlib.suppress(ManifestError):
                    found[step] = read_manifest(self.directory / step_name(step))
        return found

    def _hidden(self, step: int, purpose: str) -> Path:
        return self.directory / f".{step_name(step)}.{purpose}-{os.getpid()}"

    def _nearly_full(self) -> bool:
        """A full disk reaches us as RuntimeError from torch.save and from workers."""
        try:
            return shutil.disk_usage(self.directory).free < _NEARLY_FULL_BYTES
        except OSError:
            return True
