"""Tests of nemo_rl.launch.processes, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from nemo_rl.launch.processes import Child, descendants


def wait(child, seconds=10.0):
    deadline = time.monotonic() + seconds
    while child.returncode is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return child.returncode


def test_child_reports_exit_code_and_the_end_of_its_log(tmp_path):
    script = (
        "print('one'); print('[state-dump] noise'); print('two'); raise SystemExit(3)"
    )
    child = Child("c", [sys.executable, "-c", script], os.environ, tmp_path / "log")
    assert wait(child) == 3
    assert child.tail() == "\n    one\n    two"


def test_a_signal_counts_as_the_shell_counts_it(tmp_path):
    child = Child("c", ["sleep", "60"], os.environ, tmp_path / "log")
    child.send(9)
    assert wait(child) == 137
    child.send(9)  # gone: nothing happens


def test_a_child_ends_with_what_it_started(tmp_path):
    script = "sleep 60 & echo $! > $0.tmp; mv $0.tmp $0; wait"
    child = Child("c", ["sh", "-c", script, str(tmp_path / "pid")], os.environ)
    while not (tmp_path / "pid").exists():
        time.sleep(0.01)
    grandchild = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/status")
    child.end()
    assert child.returncode == 137
    deadline = time.monotonic() + 10
    while grandchild.exists() and "State:\tZ" not in grandchild.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_child_ignores_usr2_until_it_handles_it(tmp_path):
    child = Child("c", ["sleep", "0.3"], os.environ, tmp_path / "log")
    child.send(12)
    assert wait(child) == 0


def test_a_child_and_its_own_do_not_hear_blocked_signals(tmp_path):
    # Not a shell: dash unblocks everything while it waits.
    script = "import subprocess as s; print(s.run(['sleep', '0.4']).returncode)"
    command = [sys.executable, "-c", script + "; raise SystemExit(7)"]
    child = Child("c", command, os.environ, tmp_path / "log", blocked={signal.SIGTERM})
    os.killpg(child._process.pid, signal.SIGTERM)
    assert wait(child) == 7
    assert child.tail() == "\n    0"
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_end_all_ends_detached_grandchildren():
    script = """
import os, subprocess, sys, time
from nemo_rl.launch.processes import Child, adopt_orphans, descendants, end_all
adopt_orphans()
inner = "import subprocess, time; subprocess.Popen(['setsid', 'sleep', '60'])"
child = Child("c", [sys.executable, "-c", inner], os.environ)
while child.returncode is None: time.sleep(0.02)
before = descendants(os.getpid())
end_all(grace_s=float(sys.argv[1]))
print(len(before), len(descendants(os.getpid())))
"""
    for grace in ("0", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script, grace],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert done.stdout.split() == ["1", "0"], done.stderr


def test_descendants_of_a_lone_process():
    with subprocess.Popen(["sleep", "60"]) as child:
        assert descendants(child.pid) == []
        assert child.pid in descendants(os.getpid())
        child.kill()
