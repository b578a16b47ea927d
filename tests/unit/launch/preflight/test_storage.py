"""Tests of nemo_rl.launch.preflight.storage, on real folders."""

from __future__ import annotations

import os
import signal
import socket
import subprocess

import pytest

from nemo_rl.launch.preflight import storage
from nemo_rl.utils.exceptions import LaunchError


def test_a_folder_that_can_be_written(context):
    place = context()
    assert storage.run_folder(place).verdict == "ok"
    assert not list(place.run_dir.iterdir())


def test_a_folder_that_cannot(context, tmp_path):
    target = tmp_path / "file"
    target.touch()
    place = context(extra={"checkpoint_dir": "/proc/none/checkpoints"})
    found = storage.checkpoint_folder(place)
    assert found.verdict == "fail" and found.measured.startswith("/proc: ")
    assert "checkpointing.checkpoint_dir" in found.cure
    assert storage.checkpoint_folder(context()).measured == "in the run folder"
    found = storage.run_folder(context(run_dir=target / "run"))
    assert found.verdict == "fail" and "Not a directory" in found.measured


@pytest.fixture
def folder(context):
    """Return a function that makes a folder as an earlier job would."""

    def make(name, host=None):
        path = context().temp_root / name
        path.mkdir()
        (path / "core").write_bytes(b"0" * 100)
        if host:
            (path / storage.MARK).write_text(host)
        return path

    return make


def test_leftovers_of_dead_jobs_are_removed(context, folder):
    here = socket.gethostname()
    dead = folder("nemo_rl-900001-0", here)
    mine = folder("nemo_rl-900002-1", here)
    theirs = folder("nemo_rl-900003-0", "another-node")
    others = folder("nemo_rl-notes", here)
    found = storage.leftovers(context(job_id=900002))
    assert (found.verdict, found.measured) == (
        "ok",
        "removed of earlier jobs: nemo_rl-900001-0",
    )
    assert not dead.exists()
    assert mine.exists() and theirs.exists() and others.exists()
    assert storage.leftovers(context(job_id=900002)).measured == "none"


def test_a_job_that_lives_keeps_its_folder(context, folder):
    path = folder("nemo_rl-900004-0", socket.gethostname())
    variables = dict(os.environ) | {"SLURM_JOB_ID": "900004"}
    with subprocess.Popen(["sleep", "60"], env=variables) as process:
        try:
            while 900004 not in storage.living_jobs():
                pass  # Between fork and exec it has our environment.
            assert storage.leftovers(context()).measured == "none"
            assert path.exists()
        finally:
            process.kill()
    assert "removed" in storage.leftovers(context()).measured


def test_what_an_orphan_of_ray_uses_is_left(context, folder):
    path = folder("nemo_rl-900006-0", socket.gethostname())
    with subprocess.Popen(["sleep", "60"], env={"RAY_TMPDIR": str(path)}) as process:
        try:
            while not storage.users(path):
                pass  # Between fork and exec it has our environment.
            found = storage.leftovers(context())
            assert found.verdict == "warn"
            assert f"{path.name} (used by process {process.pid})" in found.measured
            assert path.exists()
        finally:
            process.kill()
    assert "removed" in storage.leftovers(context()).measured


def test_a_job_begins_with_an_empty_folder(context, folder):
    path = folder("nemo_rl-900007-0", socket.gethostname())
    with subprocess.Popen(["sleep", "60"], env={"RAY_TMPDIR": str(path)}) as process:
        while not storage.users(path):
            pass
        storage.claim(path)
        assert process.wait(timeout=60) == -signal.SIGKILL
    assert [entry.name for entry in path.iterdir()] == [storage.MARK]
    assert path.stat().st_mode & 0o777 == 0o700


def test_nobody_elses_folder_is_taken(context, folder):
    real = folder("elsewhere")
    link = real.with_name("nemo_rl-900008-0")
    link.symlink_to(real)
    with pytest.raises(LaunchError, match="is not ours.*NEMO_RL_TMPDIR"):
        storage.claim(link)
    assert (real / "core").exists()
    if os.getuid() == 0:
        theirs = folder("nemo_rl-900009-0")
        os.chown(theirs, 12345, 12345)
        with pytest.raises(LaunchError, match="is not ours"):
            storage.claim(theirs)
        storage.mark(theirs)
        storage.leftovers(context())
        assert theirs.exists()


def test_what_nobody_marked_is_left_and_named(context, folder):
    path = folder("nemo_rl-900005-0")
    found = storage.leftovers(context())
    assert found.verdict == "warn" and "nemo_rl-900005-0" in found.measured
    assert path.exists()
    storage.mark(path)
    assert storage.leftovers(context()).verdict == "ok"
    assert not path.exists()
