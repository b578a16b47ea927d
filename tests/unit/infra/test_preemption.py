"""The flag rises by signal and by file, and signals go back afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nemo_rl.infra import preemption
from nemo_rl.infra.preemption import PreemptionFlag


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_raises_the_flag(tmp_path, number):
    before = signal.getsignal(number)
    flag = PreemptionFlag(tmp_path).install()
    try:
        assert not flag.requested and flag.reason == ""
        os.kill(os.getpid(), number)
        assert flag.requested
        assert flag.reason == f"signal {number.name}"
    finally:
        flag.uninstall()
    assert signal.getsignal(number) == before
    assert flag.requested


def test_the_file_raises_the_flag(tmp_path):
    flag = PreemptionFlag(tmp_path).install()
    try:
        assert not flag.requested
        (tmp_path / "PREEMPT").touch()
        assert flag.requested and flag.reason == f"file {tmp_path / 'PREEMPT'}"
    finally:
        flag.uninstall()


def test_the_file_of_an_earlier_start_is_removed(tmp_path):
    file = tmp_path / "PREEMPT"
    file.touch()
    os.utime(file, (preemption._STARTED - 60, preemption._STARTED - 60))
    flag = PreemptionFlag(tmp_path).install()
    flag.uninstall()
    assert not flag.requested and not file.exists()


def test_outside_the_main_thread_the_file_still_works(tmp_path):
    flag = PreemptionFlag(tmp_path)
    before = signal.getsignal(signal.SIGUSR2)
    thread = threading.Thread(target=flag.install)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGUSR2) == before
    (tmp_path / "PREEMPT").touch()
    assert flag.requested


def test_a_second_sigterm_ends_the_process():
    program = (
        "import os, signal\n"
        "from nemo_rl.infra.preemption import PreemptionFlag\n"
        "flag = PreemptionFlag().install()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print(flag.requested, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('still here', flush=True)\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.stdout == "True\n"
    assert done.returncode == -signal.SIGTERM
