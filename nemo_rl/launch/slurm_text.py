"""What squeue, scontrol and sacct print, as Jobs. Pure text; asks nobody.

Only formats that SLURM 20.11 to 25 share: `squeue -o`, `scontrol --oneliner`, `sacct
--parsable2`. Their JSON is absent in some builds and changes between versions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

SQUEUE_FORMAT = "%A|%i|%T|%D|%L|%M|%S|%V|%N|%E|%P|%r|%j"
"""Free text comes last, so that a separator in it does no harm."""
SACCT_FORMAT = (
    "JobIDRaw,JobID,State,ExitCode,NNodes,ElapsedRaw,Submit,Start,End,NodeList,JobName"
)
ENDED = frozenset(
    {
        *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED", "REVOKED"),
        *("LAUNCH_FAILED", "EXPIRED"),
    }
)
"""States after which a job does not run again by itself."""
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD"})
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_FIELD = re.compile(r"(?:^|\s)([A-Z][A-Za-z0-9_:/]*)=")
_NOTHING = {"", "N/A", "NONE", "UNKNOWN", "(NULL)", "INVALID", "NOT_SET", "UNLIMITED"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What SLURM says of one job; None and "" where it does not say."""

    job_id: int
    """SLURM_JOB_ID of the job's processes; an array's task has its own."""
    state: str
    """Long name without additions: RUNNING, PENDING, CANCELLED ..."""
    label: str = ""
    """As sbatch calls it: "17", of an array's task "17_0". The second component of a
    heterogeneous job is "17+1"."""
    name: str = ""
    reason: str = ""
    """Why it waits, or why it ended."""
    partition: str = ""
    num_nodes: int | None = None
    nodes: str = ""
    """Compressed list of the nodes it has or had."""
    submitted: datetime | None = None
    started: datetime | None = None
    """Start; of a waiting job the expected one. Cluster's local time."""
    ended: datetime | None = None
    elapsed_s: int | None = None
    """Seconds the present or last attempt has run."""
    left_s: int | None = None
    """Seconds until the time limit; None: none, or not running."""
    exit_code: int | None = None
    """As a shell counts: 128 + n when signal n ended it."""
    dependency: str = ""
    """As in "afterany:17(unfulfilled)"."""

    @property
    def has_ended(self) -> bool:
        """Whether it will not run again by itself."""
        return self.state in ENDED

    @property
    def is_waiting(self) -> bool:
        """Whether it is in the queue."""
        return self.state in WAITING


def parse_squeue(text: str) -> list[Job]:
    """Return the jobs of `squeue --noheader --format=SQUEUE_FORMAT`.

    Tasks of an array that wait share its number.
    """
    jobs = []
    for parts in _rows(text, SQUEUE_FORMAT.count("|") + 1):
        job = Job(
            job_id=int(parts[0]),
            label=parts[1].removesuffix("+0"),
            state=_state(parts[2]),
            num_nodes=_count(parts[3]),
            left_s=seconds_of(parts[4]),
            elapsed_s=seconds_of(parts[5]),
            started=time_of(parts[6]),
            submitted=time_of(parts[7]),
            nodes=_text(parts[8]),
            dependency=_text(parts[9]),
            partition=parts[10],
            reason=_text(parts[11]),
            name=parts[12],
        )
        jobs.append(job)
    return jobs


def parse_scontrol(text: str) -> Job | None:
    """Return the job of `scontrol --oneliner show job N`, None where there is none."""
    line = next((x for x in text.splitlines() if x.startswith("JobId=")), "")
    fields: dict[str, str] = {}
    marks = list(_FIELD.finditer(line))
    for index, mark in enumerate(marks):
        end = marks[index + 1].start() if index + 1 < len(marks) else len(line)
        # The first wins: arguments of the script, at the end, may look like fields.
        fields.setdefault(mark[1], line[mark.end() : end].strip())
    if "JobState" not in fields or not fields["JobId"].isdigit():
        return None
    state = _state(fields["JobState"])
    waiting = state in WAITING
    limit = seconds_of(fields.get("TimeLimit", ""))
    elapsed = seconds_of(fields.get("RunTime", ""))
    left = None
    if limit is not None and elapsed is not None and not (waiting or state in ENDED):
        left = max(0, limit - elapsed)
    return Job(
        job_id=int(fields["JobId"]),
        label=_label(fields),
        state=state,
        name=fields.get("JobName", ""),
        reason=_text(fields.get("Reason", "")),
        partition=fields.get("Partition", ""),
        num_nodes=_count(fields.get("NumNodes", "").partition("-")[0]),
        nodes=_text(fields.get("NodeList", "")),
        submitted=time_of(fields.get("SubmitTime", "")),
        started=time_of(fields.get("StartTime", "")),
        ended=time_of(fields.get("EndTime", "")) if state in ENDED else None,
        elapsed_s=elapsed,
        left_s=left,
        exit_code=_exit_code(fields.get("ExitCode", "")),
        dependency=_text(fields.get("Dependency", "")),
    )


def parse_sacct(text: str) -> list[Job]:
    """Return the jobs of `sacct --parsable2 --noheader --format=SACCT_FORMAT`.

    Steps (17.batch, 17.0) are left out. Of a job that was requeued the last one is its
    present run.
    """
    jobs = []
    for parts in _rows(text, SACCT_FORMAT.count(",") + 1):
        job = Job(
            job_id=int(parts[0]),
            label=parts[1].removesuffix("+0"),
            state=_state(parts[2]),
            exit_code=_exit_code(parts[3]),
            num_nodes=_count(parts[4]),
            elapsed_s=_count(parts[5]),
            submitted=time_of(parts[6]),
            started=time_of(parts[7]),
            ended=time_of(parts[8]),
            nodes=_text(parts[9].replace("None assigned", "")),
            name=parts[10],
        )
        jobs.append(job)
    return jobs


def parse_version(text: str) -> tuple[int, int] | None:
    """Return (22, 5) for "slurm 22.05.8", "slurm-wlm 22.05.8" and the like."""
    match = re.search(r"slurm\S*\s+(\d+)\.(\d+)", text, re.I)
    return (int(match[1]), int(match[2])) if match else None


def seconds_of(text: str) -> int | None:
    """Return the seconds of a time or time limit; None of none, as "UNLIMITED".

    SLURM writes days-hours[:minutes[:seconds]], hours:minutes:seconds and
    minutes[:seconds].

    Example:
        >>> seconds_of("1-00:00:10"), seconds_of("1-12"), seconds_of("30")
        (86410, 129600, 1800)
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return None
    days, *parts = match.groups()
    given = [int(part) for part in parts if part is not None]
    if days is None and len(given) < 3:
        given.insert(0, 0)
    hours, minutes, seconds = (*given, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def time_of(text: str) -> datetime | None:
    """Return the local time of "2026-11-21T20:13:25"; None of "N/A" and "Unknown"."""
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        return None


def _rows(text: str, columns: int) -> Iterator[list[str]]:
    """Yield the cells of lines that begin with a job's number."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|", columns - 1)]
        if len(cells) == columns and cells[0].isdigit():
            yield cells


def _label(fields: Mapping[str, str]) -> str:
    if "ArrayJobId" in fields:
        return f"{fields['ArrayJobId']}_{fields.get('ArrayTaskId', '')}"
    return fields["JobId"]


def _state(text: str) -> str:
    """Without additions: "CANCELLED by 1000", "RUNNING+", "COMPLETED*"."""
    word = text.split()[0] if text.split() else ""
    return word.split(",")[0].rstrip("+*").upper()


def _text(value: str) -> str:
    return "" if value.strip().upper() in _NOTHING else value.strip()


def _count(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _exit_code(text: str) -> int | None:
    """Return 2 for "2:0" and 143 for "0:15"."""
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        return None
    code, number = int(match[1]), int(match[2])
    return code or (128 + number if number else 0)
