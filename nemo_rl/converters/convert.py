"""Convert a model between a Hugging Face folder and a Megatron checkpoint.

Tensor by tensor, without a model and without torch.distributed. What is written is read
back from disk and compared by digests with what came from the source before it gets its
name; what was written when a process ends is kept, and can be continued.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
import xxhash

import nemo_rl
from nemo_rl.converters.bridge import Side, some
from nemo_rl.converters.conversion import (
    Conversion,
    Request,
    config_of,
    dtypes_of,
    open_side,
    total_bytes,
)
from nemo_rl.converters.engine import Crew, Worker
from nemo_rl.converters.formats.hf import HF_PART
from nemo_rl.converters.manifest import read_manifest, write_manifest
from nemo_rl.converters.output import check_room, same_bits
from nemo_rl.converters.partial import Done, PartialFolder, sweep
from nemo_rl.converters.targets import Plan, begin_files, end_files
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError
from nemo_rl.utils.files import fsync_path

__all__ = [
    "HF_PART",
    "Plan",
    "Progress",
    "compare",
    "config_of",
    "convert",
    "dtypes_of",
    "open_side",
    "total_bytes",
]
Progress = Callable[..., None]
"""Called with the bytes of every weight that was written or compared.

Of weights that were written before a conversion was continued: once, ``earlier=True``.
"""
_BATCH_BYTES, _BATCH_SECONDS = 256 << 20, 1.0


def _ignore(_: int, *, earlier: bool = False) -> None:
    """No progress is shown."""


def default_threads() -> int:
    """Threads that a conversion uses unless told."""
    return min(len(os.sched_getaffinity(0)), 4)


def convert(  # noqa: PLR0913 - keyword-only beyond the two folders
    source: Path,
    target: Path,
    *,
    config: Path | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = 4 << 30,
    verify: bool = True,
    resume: bool = False,
    threads: int | None = None,
    processes: int = 1,
    progress: Progress = _ignore,
) -> Path:
    """Write ``source`` as the other kind of folder.

    Args:
        source: see ``open_side``.
        target: must not exist.
        config: see ``open_side``.
        dtype: of the result; None keeps every tensor's own.
        shard_bytes: size of a file of the result.
        verify: compare the result with the source before it gets its name.
        resume: continue a conversion of the same source that was interrupted.
        threads: workers; None for ``default_threads``.
        processes: workers that are processes, where more than 1.
        progress: called while weights are written and compared.

    Raises:
        NemoRLError: the source is damaged or no such model, or the result could not be
            written or differs; nothing is left under the name of the target.
        KeyboardInterrupt: stopped; its text says how to go on.
    """
    conversion = Conversion(Request(source, config, dtype, shard_bytes))
    identity = conversion.identity()
    if target.exists():
        if resume and _is_made_from(target, identity):
            sweep(target)
            return target
        raise ConfigurationError(
            f"{target} exists already. Remove it, or choose another name."
        )
    target = target.absolute()
    with _explained(target), _opened(target, identity, resume) as partial:
        _check_room(target, conversion, partial)
        worker = Worker(conversion, partial.result)
        count = default_threads() if threads is None else threads
        with Crew(worker, count, processes) as crew:
            _write(crew, worker, partial, progress)
            if verify:
                _verify(crew, conversion, partial, progress)
        worker.close()
        _describe(conversion, partial, identity)
        partial.publish()
    return target


def _is_made_from(target: Path, identity: dict[str, object]) -> bool:
    """Whether a finished folder is the result of the same work."""
    try:
        made = read_manifest(target)["made"]
    except CheckpointError:
        return False
    return made.get("work") == _digest_of(identity)


def _digest_of(identity: dict[str, object]) -> str:
    return xxhash.xxh3_128_hexdigest(repr(sorted(identity.items())).encode())


@contextmanager
def _opened(
    target: Path, identity: dict[str, object], resume: bool
) -> Iterator[PartialFolder]:
    partial = PartialFolder(target, identity, resume=resume)
    try:
        yield partial
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{len(partial.done)} of {identity['parts']} weights are kept in "
            f"{partial.place}. Continue with --resume."
        ) from None
    finally:
        partial.close()


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{target} could not be written: {error.strerror or error}. What was "
            "written is kept: mend the cause and continue with --resume."
        ) from error


def _check_room(target: Path, conversion: Conversion, partial: PartialFolder) -> None:
    files = [partial.result / name for name in conversion.target.files]
    held = sum(f.stat().st_blocks * 512 for f in files if f.exists())
    size = sum(conversion.target.files.values()) - held
    try:
        check_room(target, size)
    except CheckpointError:
        if not partial.done:
            partial.remove()
        raise


def _write(
    crew: Crew, worker: Worker, partial: PartialFolder, progress: Progress
) -> None:
    """Write the weights that are missing, noting in the journal what is safe."""
    conversion = worker.conversion
    begin_files(partial.result, conversion.target)
    fsync_path(partial.result)
    todo = [n for n in range(len(conversion.plan)) if n not in partial.done]
    if partial.done:
        progress(sum(map(conversion.size, partial.done)), earlier=True)
    batch: dict[int, Done] = {}
    size, since = 0, time.monotonic()
    saving: Future[None] | None = None

    def save(parts: dict[int, Done]) -> None:
        worker.sync()
        partial.record(parts)

    with ThreadPoolExecutor(1) as saver:
        for number, done in crew.copies(todo):
            batch[number] = done
            size += conversion.size(number)
            progress(conversion.size(number))
            due = size >= _BATCH_BYTES or time.monotonic() - since >= _BATCH_SECONDS
            if due and (saving is None or saving.done()):
                if saving is not None:
                    saving.result()
                saving = saver.submit(save, batch)
                batch, size, since = {}, 0, time.monotonic()
        if saving is not None:
            saving.result()
        end_files(partial.result, conversion.target)
        save(batch)
    conversion.target.finish(partial.result)


def _verify(
    crew: Crew, conversion: Conversion, partial: PartialFolder, progress: Progress
) -> None:
    """Read the result and compare its digests with those of the source."""
    wrong = []
    try:
        for number, found in crew.checks(range(len(conversion.plan))):
            expected = partial.done[number]
            wrong += [n for n in expected if found.get(n) != expected[n]]
            progress(conversion.size(number))
        if wrong:
            raise CheckpointError(
                f"what was written for {partial.target} is not what was read from "
                f"{conversion.request.source}: {some(wrong)}. The disk or the memory "
                "may be damaged; nothing is kept."
            )
    except CheckpointError:
        partial.remove()
        raise


def _describe(
    conversion: Conversion, partial: PartialFolder, identity: dict[str, object]
) -> None:
    digests = {n: d for done in partial.done.values() for n, d in done.items()}
    made = {
        "nemo_rl": nemo_rl.__version__,
        "kind": "huggingface" if conversion.to_hf else "megatron",
        "architecture": conversion.spec.architecture,
        "work": _digest_of(identity),
    }
    write_manifest(partial.result, conversion.tensors(digests), made)


def compare(one: Side, two: Side, plan: Plan, *, progress: Progress = _ignore) -> None:
    """Read both sides from disk and compare every element.

    Args:
        one: a side; its tensors are converted to the plan's dtype first.
        two: the other, which must have that dtype.
        plan: the weights, and the dtype of each.
        progress: called after every weight.

    Raises:
        CheckpointError: an element differs; names the tensor and how many.
    """
    for weight, dtype in plan:
        pairs = zip(one.parts(weight), two.parts(weight), strict=True)
        for name, (a, right) in zip(weight.rule.hf, pairs, strict=True):
            left = a.to(dtype)
            if left.dtype != right.dtype:
                raise CheckpointError(
                    f"{name} is {left.dtype} in {one.folder} and {right.dtype} in "
                    f"{two.folder}"
                )
            if not same_bits(left, right):
                count = int((left != right).sum())
                raise CheckpointError(
                    f"{name} differs between {one.folder} and {two.folder}: {count} of "
                    f"{left.numel()} elements"
                )
            progress(left.nbytes)
        one.release(weight)
        two.release(weight)
