"""Tests of nemo_rl.launch.preflight.system, with real limits and file systems."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from nemo_rl.launch.preflight import system

ALONE = """
import resource, sys
from pathlib import Path
from nemo_rl.launch.preflight import system
from nemo_rl.launch.preflight.checks import Context
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
found = system.open_files(Context(variables={{}}, run_dir=Path(), temp_root=Path()))
print(found.verdict, found.measured, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def limited(soft, hard):
    program = ALONE.format(soft=soft, hard=hard)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_open_files_are_raised_to_the_hard_limit():
    assert limited(256, 8192) == "warn 8192, raised from 256 8192"
    assert limited(256, 1024) == "fail 1024, raised from 256 1024"


def test_shared_memory_of_this_machine(context):
    free = shutil.disk_usage("/dev/shm").free
    found = system.shared_memory(context())
    assert found.verdict == ("ok" if free >= 80 * 2**20 else "fail")
    assert (
        f"MiB free of {shutil.disk_usage('/dev/shm').total // 2**20}" in found.measured
    )
    huge = system.shared_memory(context(memory_mb=10**9))
    assert huge.verdict in ("warn", "fail") and huge.cure


def test_room(context, tmp_path, monkeypatch):
    found = system.temp_disk(context(temp_root=tmp_path / "not" / "yet"))
    free = shutil.disk_usage(tmp_path).free // 2**20
    assert f"free below {tmp_path}" in found.measured
    assert found.verdict == ("ok" if free >= 1024 else "warn")
    monkeypatch.setattr(system, "FEW_TEMP_MIB", 10**9)
    found = system.temp_disk(context())
    assert found.verdict == "fail" and "NEMO_RL_TMPDIR" in found.cure
    assert "--run-dir" in system._room(tmp_path, 10**9, "--run-dir", 1).cure


def test_memory_to_pin_matters_where_there_is_a_fabric(context):
    found = system.locked_memory(context())
    if not Path("/dev/infiniband").exists() and not Path("/dev/cxi0").exists():
        assert found.verdict == "ok"
    assert found.measured.endswith(("KiB", "unlimited"))


def test_versions(context):
    found = system.installed()
    assert found["python"].count(".") == 2 and found["torch"] != "-"
    assert f"python {found['python']}" in system.versions(context()).measured
