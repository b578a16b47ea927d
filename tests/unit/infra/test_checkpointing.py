"""Saves are whole or absent, whatever happens to the process or the disk.

Not covered: loss of power (the tests kill processes, they cannot drop the page
cache) and a file system that lies about fsync.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nemo_rl.infra.checkpointing import CheckpointManager
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError

FINGERPRINT = {"model": "tiny", "shape": "2x64", "algorithm": "grpo"}


def section(directory: Path, **changes) -> SimpleNamespace:
    values = {
        "enabled": True,
        "checkpoint_dir": str(directory),
        "metric_name": "val:accuracy",
        "higher_is_better": True,
        "keep_top_k": 3,
        "resume": True,
    }
    return SimpleNamespace(**{**values, **changes})


def manager(directory: Path, **changes) -> CheckpointManager:
    return CheckpointManager(section(directory, **changes), fingerprint=FINGERPRINT)


def save(checkpoints: CheckpointManager, step: int, accuracy=None, size=1000) -> Path:
    metrics = {} if accuracy is None else {"val:accuracy": accuracy}
    with checkpoints.writing(step, metrics=metrics, state={"step": step}) as path:
        (path / "policy").mkdir()
        (path / "policy" / "rank_0.bin").write_bytes(bytes([step % 256]) * size)
    return checkpoints.directory / f"step_{step:06d}"


def steps(directory: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in directory.glob("step_*"))


def test_newest_returns_step_path_state_and_metrics(tmp_path):
    checkpoints = manager(tmp_path)
    assert checkpoints.newest() is None
    save(checkpoints, 10, accuracy=0.25)
    found = checkpoints.newest()
    assert (found.step, found.state, found.metrics) == (
        10,
        {"step": 10},
        {"val:accuracy": 0.25},
    )
    assert found.path == tmp_path / "step_000010"
    assert (found.path / "policy" / "rank_0.bin").stat().st_size == 1000


def test_an_error_in_the_block_leaves_no_trace(tmp_path):
    checkpoints = manager(tmp_path)
    save(checkpoints, 1)
    with pytest.raises(KeyError, match="mine"), checkpoints.writing(2) as path:
        (path / "half").write_text("half")
        raise KeyError("mine")
    assert checkpoints.newest().step == 1
    assert not list(tmp_path.glob(".step*"))


def test_an_empty_checkpoint_is_an_error(tmp_path):
    empty = pytest.raises(CheckpointError, match="nothing was written into")
    with empty, manager(tmp_path).writing(2):
        pass
    assert steps(tmp_path) == []


def test_a_step_may_be_written_again(tmp_path):
    checkpoints = manager(tmp_path)
    save(checkpoints, 5, size=10)
    save(checkpoints, 5, size=20)
    policy = checkpoints.newest().path / "policy" / "rank_0.bin"
    assert policy.stat().st_size == 20
    assert sorted(p.name for p in tmp_path.iterdir() if "step" in p.name) == [
        "step_000005"
    ]


def test_a_replacement_that_was_interrupted_is_undone(tmp_path):
    checkpoints = manager(tmp_path)
    save(checkpoints, 5)
    checkpoints.close()
    os.rename(tmp_path / "step_000005", tmp_path / ".step_000005.old-123")
    (tmp_path / ".step_000005.tmp-123").mkdir()
    assert manager(tmp_path).newest().step == 5
    assert not list(tmp_path.glob(".step*"))


def test_the_best_by_metric_and_the_latest_stay(tmp_path):
    checkpoints = manager(tmp_path, keep_top_k=2)
    for step, accuracy in [(1, 0.1), (2, 0.9), (3, 0.5), (4, 0.9), (5, 0.2)]:
        save(checkpoints, step, accuracy)
    assert steps(tmp_path) == [2, 4, 5]
    save(checkpoints, 6)
    assert steps(tmp_path) == [2, 4, 6]
    assert [info.step for info in checkpoints.checkpoints()] == [2, 4, 6]


def test_a_missing_metric_is_said_once(tmp_path, caplog):
    checkpoints = manager(tmp_path)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2):
            with checkpoints.writing(step, metrics={"train:loss": 1.0}) as path:
                (path / "x").write_text("x")
    messages = [m for m in caplog.messages if "metric_name" in m]
    assert messages == [
        "checkpointing.metric_name=val:accuracy is not among the metrics of step 1 "
        "(train:loss); such checkpoints rank below those that have it"
    ]


@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped", "manifest"])
def test_damage_falls_back_to_the_one_before_and_names_the_file(
    tmp_path, caplog, damage
):
    checkpoints = manager(tmp_path)
    for step in (10, 20):
        save(checkpoints, step)
    checkpoints.close()
    file = tmp_path / "step_000020" / "policy" / "rank_0.bin"
    if damage == "truncated":
        os.truncate(file, 400)
        expected = f"{file} has 400 bytes, the manifest says 1000"
    elif damage == "missing":
        file.unlink()
        expected = f"{file} is missing"
    elif damage == "flipped":
        file.write_bytes(b"x" * 1000)
        expected = f"{file} has other content than was saved"
    else:
        file = tmp_path / "step_000020" / "manifest.json"
        os.truncate(file, 30)
        expected = f"{file} cannot be read"
    with caplog.at_level(logging.WARNING):
        resumed = manager(tmp_path)
        assert resumed.newest().step == 10
    assert expected in caplog.text and "Falling back to" in caplog.text
    # The damaged one neither counts as a checkpoint to keep nor blocks its step.
    save(resumed, 20)
    assert resumed.newest().step == 20


def test_all_damaged_is_an_error_that_lists_each(tmp_path):
    checkpoints = manager(tmp_path)
    for step in (10, 20):
        path = save(checkpoints, step)
        os.truncate(path / "trainer_state.json", 3)
    with pytest.raises(CheckpointError, match="every checkpoint in .* is damaged") as e:
        checkpoints.newest()
    assert "step_000010: " in str(e.value) and "step_000020: " in str(e.value)


def test_a_damaged_one_is_neither_latest_nor_best(tmp_path):
    checkpoints = manager(tmp_path, keep_top_k=1)
    save(checkpoints, 10, accuracy=0.9)
    os.truncate(save(checkpoints, 20, accuracy=0.1) / "policy" / "rank_0.bin", 1)
    assert checkpoints.newest().step == 10
    save(checkpoints, 15, accuracy=0.5)
    assert steps(tmp_path) == [10, 15, 20]
    save(checkpoints, 20, accuracy=0.2)
    assert steps(tmp_path) == [10, 20]


def test_another_models_checkpoint_is_refused_with_both_values(tmp_path):
    first = manager(tmp_path)
    save(first, 10)
    first.close()
    other = CheckpointManager(
        section(tmp_path), fingerprint={**FINGERPRINT, "model": "huge"}
    )
    with pytest.raises(CheckpointError) as error:
        other.newest()
    assert "model: the checkpoint has 'tiny', this run has 'huge'" in str(error.value)
    assert "shape" not in str(error.value)


def test_fingerprints_survive_json(tmp_path):
    with_tuple = {"betas": (0.9, 0.95), "path": Path("/models/a")}
    first = CheckpointManager(section(tmp_path), fingerprint=with_tuple)
    save(first, 1)
    again = CheckpointManager(section(tmp_path), fingerprint=with_tuple)
    assert again.newest().step == 1


def test_old_checkpoints_are_not_mixed_into_a_run_that_must_not_resume(tmp_path):
    first = manager(tmp_path)
    save(first, 10)
    first.close()
    with pytest.raises(ConfigurationError, match="resume is false"):
        manager(tmp_path, resume=False).newest()


def test_disabled_checkpointing_touches_nothing(tmp_path):
    checkpoints = manager(tmp_path / "never", enabled=False)
    checkpoints.check_writable()
    assert checkpoints.newest() is None
    disabled = pytest.raises(CheckpointError, match="enabled is false")
    with disabled, checkpoints.writing(1):
        pass
    assert not (tmp_path / "never").exists()


def test_an_unwritable_folder_is_found_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigurationError, match="cannot be written: Not a directory"):
        manager(tmp_path / "file" / "checkpoints").check_writable()


def test_too_little_room_is_found_before_training(tmp_path):
    checkpoints = manager(tmp_path)
    checkpoints.check_writable(required_bytes=1)
    with pytest.raises(ConfigurationError, match="one checkpoint needs about .* TiB"):
        checkpoints.check_writable(required_bytes=2**60)


def test_a_newer_manager_fences_off_the_older_one(tmp_path):
    older, newer = manager(tmp_path), manager(tmp_path)
    save(older, 1)
    fenced = pytest.raises(CheckpointError, match="taken over by process")
    with fenced, older.writing(2) as path:
        (path / "x").write_text("x")
        newer.check_writable()
    with pytest.raises(CheckpointError, match="taken over by process"):
        save(older, 3)
    assert newer.newest().step == 1


def test_kill_minus_nine_at_any_line(tmp_path):
    program = Path(__file__).with_name("kill_enumerator.py")
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), "9", "60"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["kills_at_lines"] > 50
    assert seen["runs_with_temporary_folders"] > 20
    assert seen["random_newest"] > 10


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one mebibyte; needs the right to mount."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    with contextlib.suppress(FileNotFoundError):
        if os.geteuid() == 0 and subprocess.run(command).returncode == 0:
            yield mount
            subprocess.run(["umount", str(mount)], check=True)
            return
    pytest.skip("mounting a tmpfs is not allowed here")


def test_a_full_disk_removes_the_half_and_keeps_the_good_one(small_disk):
    checkpoints = manager(small_disk)
    save(checkpoints, 1, size=300_000)
    with pytest.raises(CheckpointError) as error:
        save(checkpoints, 2, size=2_000_000)
    text = str(error.value)
    assert "No space left on device" in text and "that of step 1 stays" in text
    assert checkpoints.newest().step == 1
    assert not list(small_disk.glob(".step*"))
    save(checkpoints, 3, size=300_000)
    assert checkpoints.newest().step == 3


def test_a_file_size_limit_is_reported_like_a_full_disk(tmp_path):
    """The same as above where mounting is not allowed: writes fail with EFBIG."""
    checkpoints = manager(tmp_path)
    save(checkpoints, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(CheckpointError, match="File too large.*step 1 stays"):
            save(checkpoints, 2, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert checkpoints.newest().step == 1
    assert not list(tmp_path.glob(".step*"))


def test_a_runtime_error_of_a_full_disk_becomes_a_checkpoint_error(small_disk):
    checkpoints = manager(small_disk)
    full = pytest.raises(CheckpointError, match="writer failed")
    with full, checkpoints.writing(1):
        raise RuntimeError("PytorchStreamWriter: writer failed writing file")


def test_a_runtime_error_with_room_on_the_disk_stays_what_it_is(tmp_path):
    if os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize < 2**27:
        pytest.skip("this disk is nearly full")
    with pytest.raises(RuntimeError, match="a bug"), manager(tmp_path).writing(1):
        raise RuntimeError("a bug")
