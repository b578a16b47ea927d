"""Check and Finding: one question to a machine, and its answer with limit and cure.

Every check runs in a thread with a deadline of its own: a file system that hangs, or
a driver that does, is then a finding and no hung job. Knows none of the checks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from threading import Thread
from typing import Any

from nemo_rl.utils.exceptions import LaunchError, NemoRLError
from nemo_rl.utils.suggest import did_you_mean

OK, WARN, FAIL, SKIPPED = "ok", "warn", "fail", "skipped"
NODE, USER = "node", "user"


@dataclass(frozen=True, kw_only=True)
class Context:
    """All that a check may look at."""

    variables: Mapping[str, str]
    """Variables of the job, or of the site and the shell."""
    run_dir: Path
    """Where the run will write."""
    temp_root: Path
    """Node-local folder for temporary files."""
    job_id: int = 0
    """SLURM's job number; 0 outside a job."""
    node: str = ""
    """Name of this node."""
    gpus: int = 0
    """GPUs asked for on this node."""
    memory_mb: int = 0
    """Memory of the job on this node in MiB."""
    recipe: Path | None = None
    """The recipe, if there is one."""
    overrides: tuple[str, ...] = ()
    """ "section.key=value" texts."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What single checks need beside, by name."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found out."""

    name: str = ""
    """Of the check; filled in by `run_checks`."""
    verdict: str
    """ok, warn, fail or skipped."""
    measured: str
    """What was read."""
    limit: str = ""
    """What was expected."""
    cure: str = ""
    """What to do about it; empty where all is well."""
    node: str = ""
    """Where; filled in by `run_checks`."""
    blame: str = NODE
    """Whose fault: another node may help (node), or only another recipe (user)."""
    seconds: float = 0.0
    """How long it took."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)

    def line(self) -> str:
        """Return one line for a log."""
        text = f"{self.name}: {self.measured}"
        text += f" (limit: {self.limit})" if self.limit else ""
        return text + (f"; {self.cure}" if self.cure else "")


def ok(measured: str, limit: str = "") -> Finding:
    """All is well."""
    return Finding(verdict=OK, measured=measured, limit=limit)


def bad(
    measured: str, limit: str, cure: str, *, verdict: str = FAIL, blame: str = NODE
) -> Finding:
    """Something is not: a failure, or a warning."""
    return Finding(
        verdict=verdict, measured=measured, limit=limit, cure=cure, blame=blame
    )


def skipped(why: str) -> Finding:
    """There was nothing to look at."""
    return Finding(verdict=SKIPPED, measured=why)


@dataclass(frozen=True)
class Check:
    """A question to a machine."""

    name: str
    """Short, for --only and --skip."""
    why: str
    """What goes wrong where it fails."""
    run: Callable[[Context], Finding]
    """Finds out."""
    limit_s: float = 10.0
    """Its deadline in seconds."""
    late: str = FAIL
    """Verdict where the deadline passes."""
    blame: str = NODE
    """Whose fault a failure is, where the finding does not say."""


def chosen(
    checks: Sequence[Check], only: Collection[str] = (), skip: Collection[str] = ()
) -> list[Check]:
    """Return the checks of `only` (all, if it is empty) without those of `skip`.

    Raises:
        LaunchError: a name that is none.
    """
    names = [check.name for check in checks]
    for name in (*only, *skip):
        if name not in names:
            raise LaunchError(
                f"no check {name!r}.{did_you_mean(name, names)} There are: "
                f"{', '.join(names)}."
            )
    wanted = set(only or names) - set(skip)
    return [check for check in checks if check.name in wanted]


class Running:
    """Checks under way, all at once."""

    def __init__(self, checks: Sequence[Check], context: Context) -> None:
        """Start them."""
        self._context = context
        self._began = time.monotonic()
        self._open = {check.name: check for check in checks}
        self._order = list(self._open)
        self._found: dict[str, Finding] = {}
        for check in checks:
            # A daemon: a thread that hangs in a file system cannot be ended.
            Thread(target=self._run, args=(check,), daemon=True).start()

    def _run(self, check: Check) -> None:
        try:
            found = check.run(self._context)
        except NemoRLError as error:
            found = bad(str(error), "no error", "see the message", blame=USER)
        except OSError as error:
            found = bad(f"{type(error).__name__}: {error}", "no error", check.why)
        except Exception as error:  # noqa: BLE001 - a check's own defect ends no job
            found = bad(
                f"the check itself failed: {error!r}",
                "",
                "please report it",
                verdict=WARN,
            )
        if check.blame == USER:
            found = replace(found, blame=USER)
        self._found.setdefault(check.name, self._signed(check, found))

    def _signed(self, check: Check, found: Finding) -> Finding:
        seconds = round(time.monotonic() - self._began, 2)
        return replace(found, name=check.name, node=self._context.node, seconds=seconds)

    def results(self) -> list[Finding] | None:
        """Return all findings in order, None while some are still to come."""
        passed = time.monotonic() - self._began
        for name, check in self._open.items():
            if name not in self._found and passed > check.limit_s:
                late = bad(
                    f"no answer in {check.limit_s:.0f} s",
                    f"{check.limit_s:.0f} s",
                    f"something hangs here: {check.why}",
                    verdict=check.late,
                )
                self._found.setdefault(name, self._signed(check, late))
        if len(self._found) < len(self._open):
            return None
        return [self._found[name] for name in self._order]


def run_checks(checks: Sequence[Check], context: Context) -> list[Finding]:
    """Run checks at once and wait for all; no longer than the longest deadline."""
    running = Running(checks, context)
    while (found := running.results()) is None:
        time.sleep(0.05)
    return found


def worst(findings: Sequence[Finding]) -> str:
    """Return the worst verdict of all."""
    for verdict in (FAIL, WARN):
        if any(found.verdict == verdict for found in findings):
            return verdict
    return OK
