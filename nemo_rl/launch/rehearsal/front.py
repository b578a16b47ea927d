"""What `nemo-rl launch --rehearse` shows: starts the program, prints a table of stages.

Needs no torch itself; the program it starts does.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_rl.api.functional import algorithm_of
from nemo_rl.launch.rehearsal.stages import NAMES
from nemo_rl.launch.request import Prepared
from nemo_rl.utils import env
from nemo_rl.utils.exceptions import LaunchError

LOG = "rehearsal.log"
KEPT = (LOG, "rehearsal.yaml", "logs")
"""What stays in the folder of a rehearsal that failed."""
OF_A_JOB = ("RAY_ADDRESS", "NEMO_RL_END_FILE", "SLURM_JOB_END_TIME") + (
    "NEMO_RL_PULSE_DIR",
)
"""Variables of a job that the rehearsal may happen to be inside: its Ray, its end."""
OF_AN_EVALUATION = (*NAMES[:4], "workers", "answers")
OK, FAILED, LEFT = "ok", "FAILED", "-"
LAST_LINES = 15


@dataclass
class Outcome:
    """What became of a rehearsal.

    Attributes:
        rows: stage, verdict, seconds and words, in order.
        differs: what it did otherwise than the recipe.
        error: the error's text; None where all went well.
        code: exit code.
    """

    rows: list[tuple[str, str, float | None, str]] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    error: str | None = None
    code: int = 0


def rehearse(
    prepared: Prepared, *, stand_in: str | None = None, as_json: bool = False
) -> int:
    """Play a checked recipe here with a small random model; print, return exit code.

    Args:
        prepared: the recipe, checked at its full size.
        stand_in: a model in place of the recipe's own, which is not on this machine.
        as_json: print one JSON document.

    Raises:
        LaunchError: what was asked for is not one run.
    """
    if prepared.groups or prepared.chain or prepared.first.run_dir:
        raise LaunchError(
            "--rehearse plays one run from its beginning, in a folder of its own: "
            "leave out --sweep, --chain and --run-dir."
        )
    folder = Path(tempfile.mkdtemp(prefix="nemo_rl-rehearsal-"))
    started = time.monotonic()
    if not as_json:
        print(
            f"rehearsing {prepared.first.name} on this machine; log: {folder / LOG}",
            flush=True,
        )
    names = OF_AN_EVALUATION if algorithm_of(prepared.config) == "eval" else NAMES
    outcome = _play(_command(prepared, folder, stand_in), folder, names)
    seconds = time.monotonic() - started
    if outcome.code == 0:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        _keep_little(folder)
    if as_json:
        print(json.dumps(_document(outcome, seconds), indent=2))
    else:
        print(text_of(outcome, seconds))
    if outcome.error is not None:
        print(f"nemo_rl: {outcome.error}\nlog: {folder / LOG}", file=sys.stderr)
    return outcome.code


def _command(prepared: Prepared, folder: Path, stand_in: str | None) -> list[str]:
    words = [sys.executable, "-m", "nemo_rl.launch.rehearsal.program"]
    words += [str(prepared.recipe), *prepared.overrides, "--folder", str(folder)]
    return words + (["--stand-in", stand_in] if stand_in else [])


def _play(command: Sequence[str], folder: Path, names: Sequence[str]) -> Outcome:
    variables = env.inherited() | {"CUDA_VISIBLE_DEVICES": ""}
    for name in OF_A_JOB:
        variables.pop(name, None)
    with (folder / LOG).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            outcome = collect(_lines(process), names)
            code = process.wait()
        except KeyboardInterrupt:
            # It got the same signal; give it the time to end its workers.
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()
            shutil.rmtree(folder, ignore_errors=True)
            raise
    if code and outcome.error is None:
        outcome.error, outcome.code = _unexplained(code, folder / LOG), 1
    return outcome


def _lines(process: Any) -> Iterator[Mapping[str, Any]]:
    show = sys.stderr.isatty()
    for line in process.stdout:
        said = json.loads(line)
        if show and "on" in said:
            print(f"\r\033[K  {said['on']} ...", end="", file=sys.stderr, flush=True)
        yield said
    if show:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def collect(said: Iterator[Mapping[str, Any]], names: Sequence[str]) -> Outcome:
    """Put together what the program told.

    Args:
        said: its lines.
        names: stages in order; those it told nothing of are shown as not reached.
    """
    outcome, found, failed, on = Outcome(), {}, None, ""
    for each in said:
        on = each.get("on", on)
        if "done" in each:
            found[each["done"]] = (OK, each["seconds"], each["detail"])
        elif "left" in each:
            found[each["left"]] = (LEFT, None, each["detail"])
        elif "differs" in each:
            outcome.differs = each["differs"]
        elif "failed" in each:
            failed = each["failed"] or on
            outcome.error, outcome.code = each["text"], each["code"]
    complete = all(name in found for name in names)
    if failed is None and not complete:
        failed = on
    if failed is not None:
        found[failed] = (FAILED, None, "see below")
        before = names[: names.index(failed)] if failed in names else ()
        for name in before:
            found.setdefault(name, (OK, None, ""))
    for name in names:
        found.setdefault(name, (LEFT, None, "not reached"))
    outcome.rows = [(name, *found[name]) for name in names]
    return outcome


def text_of(outcome: Outcome, seconds: float, width: int | None = None) -> str:
    """Return the table of stages and what was different.

    Args:
        outcome: what happened.
        seconds: how long it took.
        width: characters of a line; the terminal's by default.
    """
    width = width or min(shutil.get_terminal_size((100, 20)).columns, 120)
    lines = [f"{'stage':13}{'verdict':9}{'seconds':>7}  what"]
    for name, verdict, took, words in outcome.rows:
        number = "" if took is None else f"{took:.1f}"
        left = f"{name:13}{verdict:9}{number:>7}  "
        lines += textwrap.wrap(
            words,
            width,
            initial_indent=left,
            subsequent_indent=" " * len(left),
            break_long_words=False,
        ) or [left.rstrip()]
    if outcome.differs:
        lines.append("otherwise than in the recipe:")
        for phrase in outcome.differs:
            lines += textwrap.wrap(
                phrase, width, initial_indent="  - ", subsequent_indent="    "
            )
    end = "went through" if outcome.error is None else "failed"
    lines.append(f"the rehearsal {end}, in {seconds:.0f} s")
    return "\n".join(lines)


def _document(outcome: Outcome, seconds: float) -> dict[str, Any]:
    keys = ("stage", "verdict", "seconds", "what")
    return {
        "exit_code": outcome.code,
        "seconds": round(seconds, 1),
        "stages": [dict(zip(keys, row, strict=True)) for row in outcome.rows],
        "differs": outcome.differs,
        "error": outcome.error,
    }


def _unexplained(code: int, log: Path) -> str:
    """Say how the program ended that told nothing."""
    how = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    if code == -9:
        how += " (SIGKILL: is this machine out of memory?)"
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([f"the rehearsal {how}. The end of its log:", *tail[-LAST_LINES:]])


def _keep_little(folder: Path) -> None:
    """Remove models and checkpoints, which are large; keep what explains."""
    for path in folder.iterdir():
        if path.name in KEPT:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
