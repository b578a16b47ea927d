"""Conversions that are killed, stopped, or run twice at once, and then continued."""

from __future__ import annotations

import fcntl
import filecmp
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_rl.converters import convert as module
from nemo_rl.converters.cli.parser import main
from nemo_rl.converters.manifest import MANIFEST
from nemo_rl.converters.partial import partial_of
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError

FORKS = multiprocessing.get_context("forkserver")


def _convert(source: Path, target: Path) -> None:
    module._BATCH_SECONDS = 0.0  # every weight is noted at once
    module.convert(source, target, resume=True)


def same(one, two):
    names = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    others = sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    equal = all(filecmp.cmp(one / n, two / n, shallow=False) for n in names)
    return names == others and equal


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    from tests.fakes import models

    FORKS.set_forkserver_preload([module.__name__, __name__])
    folder = tmp_path_factory.mktemp("model") / "llama"
    return models.save(folder, "llama", tied=False, layers=12, hidden=128)


def kill_again_and_again(source, target, whole, times):
    """Kill at random moments; True where the journal of one was continued."""
    _start(source, target).join()  # and the server of forks
    assert same(target, whole)
    os.rename(target, target.with_name("first"))
    begin = time.monotonic()
    _start(source, target).join()
    seconds = time.monotonic() - begin
    assert same(target, whole)
    generator, continued, killed = random.Random(0), 0, 0
    while killed < times:
        if target.exists():
            _start(source, target).join()
            assert same(target, whole) and not partial_of(target).exists()
            os.rename(target, target.with_name(f"done-{killed}-{time.monotonic_ns()}"))
        child = _start(source, target)
        time.sleep(generator.uniform(0, seconds))
        alive = child.is_alive()
        child.kill()
        child.join()
        killed += alive
        if target.exists():
            assert same(target, whole)
        journal = partial_of(target) / "journal"
        continued += journal.exists() and journal.read_bytes().count(b"\n") > 1
    _start(source, target).join()
    assert same(target, whole) and not partial_of(target).exists()
    return continued


def _start(source, target):
    child = FORKS.Process(target=_convert, args=(source, target))
    child.start()
    return child


def test_killed_at_random_moments_a_conversion_is_finished(source, tmp_path):
    whole = module.convert(source, tmp_path / "whole")
    kill_again_and_again(source, tmp_path / "out", whole, 3)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["to", "back"])
def test_killed_at_twenty_moments_a_conversion_is_finished(tmp_path, way):
    from tests.fakes import models

    shape = {"layers": 8, "hidden": 768, "vocab": 1024}
    source = models.save(tmp_path / "llama", "llama", tied=False, **shape)
    whole = module.convert(source, tmp_path / "whole")
    if way == "back":
        source, whole = whole, module.convert(whole, tmp_path / "hf")
    assert kill_again_and_again(source, tmp_path / "out", whole, 20)


def interrupted(source, target, monkeypatch, after):
    """Stop as Ctrl-C does, after so many weights; the message."""
    seen = []

    def stop(count):
        seen.append(count)
        if len(seen) > after:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "_BATCH_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt) as stopped:
        module.convert(source, target, threads=1, progress=stop)
    return str(stopped.value)


def test_ctrl_c_says_how_to_go_on(source, tmp_path, monkeypatch):
    message = interrupted(source, tmp_path / "out", monkeypatch, 30)
    assert "weights are kept in" in message and "--resume" in message
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="was begun before: .* --resume, or rem"):
        module.convert(source, tmp_path / "out")
    counted = []

    def count(size, *, earlier=False):
        counted.append((earlier, size))

    module.convert(source, tmp_path / "out", resume=True, progress=count)
    assert counted[0][0] and counted[0][1] > 0
    assert not any(earlier for earlier, _ in counted[1:])
    assert same(tmp_path / "out", module.convert(source, tmp_path / "whole"))


def test_a_source_that_changed_is_not_continued(source, tmp_path, monkeypatch):
    interrupted(source, tmp_path / "out", monkeypatch, 30)
    weights = source / "model.safetensors"
    before = weights.stat().st_mtime_ns
    os.utime(weights, ns=(1, 1))
    with pytest.raises(CheckpointError, match="files of the source: model.safetensors"):
        module.convert(source, tmp_path / "out", resume=True)
    os.utime(weights, ns=(before, before))
    with pytest.raises(CheckpointError, match="size of a shard was 4294967296, is 9"):
        module.convert(source, tmp_path / "out", resume=True, shard_bytes=9)
    module.convert(source, tmp_path / "out", resume=True)


def test_to_continue_what_is_finished_is_no_mistake(source, tmp_path):
    out = module.convert(source, tmp_path / "out")
    assert module.convert(source, out, resume=True) == out
    with pytest.raises(ConfigurationError, match="exists already"):
        module.convert(source, out, resume=True, shard_bytes=9)
    (out / MANIFEST).unlink()
    with pytest.raises(ConfigurationError, match="exists already"):
        module.convert(source, out, resume=True)


def test_two_at_once(source, tmp_path, capsys):
    partial_of(tmp_path / "out").mkdir()
    with open(partial_of(tmp_path / "out") / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["hf-to-megatron", str(source), str(tmp_path / "out")]
        assert main(command) == main([*command, "--resume"]) == 2
    assert capsys.readouterr().err.count("another process is writing") == 2
    assert main(command) == 0


def test_a_byte_that_changes_after_it_was_noted_is_found(source, tmp_path, monkeypatch):
    interrupted(source, tmp_path / "out", monkeypatch, 100)
    file = partial_of(tmp_path / "out") / "result" / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[5000] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"not what was read .*embed_tokens"):
        module.convert(source, tmp_path / "out", resume=True)
    assert not partial_of(tmp_path / "out").exists()


def test_a_disk_that_is_full_keeps_what_is_written(source, tmp_path):
    code = (
        "import resource, sys; from nemo_rl.converters.cli.parser import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / "out"
    command = ["hf-to-megatron", str(source), str(out)]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True
    )
    assert done.returncode == 2 and not out.exists()
    assert "could not be written: File too large" in done.stderr
    assert "continue with --resume" in done.stderr
    assert main([*command, "--resume"]) == 0
