"""Kill a writer of checkpoints at its n-th executed line, for every n-th line.

Run as a program by test_checkpointing; prints one JSON line with what it saw. A
program of its own, because it forks and a test process has threads.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from nemo_rl.infra.checkpoint_folders import find_newest
from nemo_rl.infra.checkpointing import CheckpointManager

PACKAGE = os.sep + os.path.join("nemo_rl", "infra") + os.sep


def config(directory: Path) -> SimpleNamespace:
    """A checkpointing section with the fields that the manager reads."""
    return SimpleNamespace(
        enabled=True,
        checkpoint_dir=str(directory),
        metric_name="val:accuracy",
        higher_is_better=True,
        keep_top_k=1,
        resume=True,
    )


def save(manager: CheckpointManager, step: int) -> None:
    """Save a checkpoint whose content can be told from its step."""
    with manager.writing(
        step, metrics={"val:accuracy": 1.0 / step}, state={"step": step}
    ) as path:
        (path / "policy").mkdir()
        for rank in range(2):
            (path / "policy" / f"rank_{rank}.bin").write_bytes(bytes([step]) * 5000)


def child(directory: Path, steps: list[int], acknowledge: int) -> None:
    """Resume, save `steps`, and report each finished one through a pipe."""
    manager = CheckpointManager(config(directory), fingerprint={"model": "m"})
    manager.check_writable()
    manager.newest()
    for step in steps:
        save(manager, step)
        os.write(acknowledge, bytes([step]))


def kill_at_line(number: int) -> None:
    """Arrange SIGKILL before the `number`-th line that runs inside nemo_rl.infra."""
    left = number

    def trace(frame, event, argument):
        nonlocal left
        if PACKAGE not in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def run_killed(directory: Path, steps: list[int], line: int | None) -> tuple[int, bool]:
    """Fork a writer; returns (newest acknowledged step, whether it was killed)."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if line is not None:
                kill_at_line(line)
            child(directory, steps, writable)
            status = 0
        finally:
            os._exit(status)
    os.close(writable)
    if line is None:
        time.sleep(random.uniform(0.0, 0.03))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(readable, "rb") as pipe:
        acknowledged = pipe.read()
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise RuntimeError(f"the writer failed at line {line}")
    return max(acknowledged, default=0), os.WIFSIGNALED(status)


def check(directory: Path, at_least: int) -> tuple[int, int]:
    """Verify the folder as the next start would; (newest step, hidden folders)."""
    hidden = sum(1 for path in directory.glob(".step_*"))
    # A second process that only reads never meets a half-written checkpoint.
    _, damage = find_newest(directory)
    if damage:
        raise RuntimeError(f"a reader met damage: {damage}")
    manager = CheckpointManager(config(directory), fingerprint={"model": "m"})
    found = manager.newest()
    manager.close()
    step = found.step if found else 0
    if step < at_least:
        raise RuntimeError(f"step {at_least} was acknowledged, but newest is {step}")
    if found is not None:
        content = (found.path / "policy" / "rank_1.bin").read_bytes()
        if content != bytes([step]) * 5000 or found.state != {"step": step}:
            raise RuntimeError(f"{found.path} has the content of another step")
    left = [path.name for path in directory.iterdir() if path.name[:5] == ".step"]
    if left:
        raise RuntimeError(f"left after a start: {left}")
    return step, hidden


def main() -> None:
    """Args: folder, stride of killed lines, number of kills at random times."""
    root, stride, random_kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    kills = temporary_seen = 0
    line, killed = 1, True
    while killed:
        directory = root / f"line_{line}"
        directory.mkdir()
        run_killed(directory, [1], 10**9)
        # Step 1 is written again: the replacement of a folder is killed as well.
        acknowledged, killed = run_killed(directory, [1, 2, 3], line)
        _, hidden = check(directory, max(acknowledged, 1))
        kills += killed
        temporary_seen += bool(hidden)
        line += stride
    steps = 0
    directory = root / "random"
    directory.mkdir()
    for _ in range(random_kills):
        following = [min(steps + 1 + n, 250) for n in range(5)]
        acknowledged, _ = run_killed(directory, following, None)
        steps, hidden = check(directory, max(acknowledged, steps))
        temporary_seen += bool(hidden)
    print(
        json.dumps(
            {
                "kills_at_lines": kills,
                "last_line": line,
                "random_newest": steps,
                "runs_with_temporary_folders": temporary_seen,
            }
        )
    )


if __name__ == "__main__":
    main()
