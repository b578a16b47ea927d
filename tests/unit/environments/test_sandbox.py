"""Programs that go too far, in a real sandbox. Covers sandbox_child.py too."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from nemo_rl.environments.sandbox import Limits, Result, run_python
from nemo_rl.utils.exceptions import ConfigurationError


def refused() -> bool:
    try:
        run_python("", limits=Limits())
    except ConfigurationError:
        return True
    return False


isolated = pytest.mark.skipif(
    refused(), reason="mounting a tmpfs is not allowed here, nor any new namespace"
)


def run(source: str, stdin: str = "", **limits) -> Result:
    """Isolated where that is possible; the rest must hold everywhere."""
    limits.setdefault("network", refused_here)
    return run_python(source, stdin=stdin, limits=Limits(**limits))


refused_here = refused()


def test_output_and_coming_to_the_end():
    result = run("print(input()[::-1])", "abc")
    assert result == Result(True, False, 0, "cba\n", "")


@pytest.mark.parametrize(
    "source",
    ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit"],
    ids=["exit", "_exit", "raise"],
)
def test_leaving_early_is_not_coming_to_the_end(source):
    result = run(f"{source}\nassert False")
    assert (result.completed, result.exit_code) == (False, 0)


def test_errors_show_the_programs_own_lines():
    result = run("x = 1\nx / 0")
    assert not result.completed and result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[1:] == [
        '  File "<program>", line 2, in <module>',
        "ZeroDivisionError: division by zero",
    ]


def test_memory_and_files_are_bounded():
    assert "MemoryError" in run("'a' * (2 << 30)", memory_mb=256).stderr
    big = "open('x', 'w').write('a' * (3 << 20))"
    assert "File too large" in run(big, max_file_mb=2).stderr
    assert "File too large" in run("print('a' * (3 << 20))", max_file_mb=2).stderr


def test_time_is_bounded_and_nothing_is_left():
    marker = f"nemo-{os.getpid()}"
    source = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', "
        f"{marker!r}])\n"
        "time.sleep(60)\n"
    )
    started = time.monotonic()
    result = run(source, timeout_s=1.0)
    assert result.timed_out and not result.completed
    assert time.monotonic() - started < 5
    assert run("while True: pass", cpu_s=1, timeout_s=30).exit_code != 0
    assert not [p for p in processes() if marker in p]


def processes() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace"))
        except OSError:
            continue  # it has just ended
    return found


def test_nothing_of_the_users_environment_is_there(monkeypatch):
    monkeypatch.setenv("A_SECRET", "of the user")
    assert "A_SECRET" not in run("import os; print(os.environ)").stdout


@isolated
def test_no_network_no_other_files_no_other_processes(tmp_path):
    tmp_path.chmod(0o777)
    source = f"""
import os, socket
def tried(what):
    try:
        what()
    except OSError as error:
        return error.strerror
print(tried(lambda: socket.create_connection(("127.0.0.1", 9), 1)))
print(tried(lambda: open({str(tmp_path / "x")!r}, "w")))
print(tried(lambda: open("own", "w")), os.listdir("."), os.listdir("/proc"))
"""
    result = run(source)
    assert result.stdout.splitlines() == [
        "Network is unreachable",
        "Read-only file system",
        "None ['own'] []",
    ]


@isolated
def test_processes_are_bounded_and_cannot_slip_away():
    bomb = """
import os, time
count = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        count += 1
except OSError:
    print(count)
"""
    result = run(bomb, max_processes=8)
    assert result.completed and 5 <= int(result.stdout) <= 8
    away = f"import os, time\nos.setsid()\nif os.fork() == 0:\n  os.setsid()\n{_SLEEP}"
    assert run(away, timeout_s=1.0).timed_out
    time.sleep(0.1)
    assert not [p for p in processes() if "settings.json" in p]


_SLEEP = "time.sleep(30)"


def test_a_refusal_of_the_kernel_says_what_to_do():
    from nemo_rl.environments.sandbox import _check

    lines = ["refused: [Errno 1] unshare: Operation not permitted"]
    with pytest.raises(ConfigurationError, match="unshare: .*env.code.network to 'all"):
        _check(lines, Limits(), open(os.devnull, "rb"))  # noqa: SIM115
