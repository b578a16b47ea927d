"""Seconds from the start of a job to its first training step, phase by phase.

A real SLURM on this host, three nodes with addresses of their own that share its CPUs;
`recipes/grpo_smollm2_cpu.sh` with a tiny model, all checks of the nodes included. The
moments are those that every job writes into its attempt's folder. Beside them stands
the CPU time that all processes of the cluster had used by then, which depends little on
what else runs: on a quiet machine it bounds the time from below. Needs SLURM's
programs (tests/slurm/cluster.py names the packages).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from threading import Thread
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.page import PAGE, cpu_model, put
from nemo_rl.launch import timeline
from tests.slurm import workplace
from tests.slurm.cluster import PACKAGES, Cluster, missing_programs

SECTION = "bringup"
TITLE = "From the start of a job to its first step"
JOB = "recipes/grpo_smollm2_cpu.sh"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
LIMIT_S = 300.0
SAMPLE_S = 0.25
READY = "joined"
Run = list[tuple[timeline.Moment, float]]
"""Moments of a job and the CPU seconds used until each."""


class Meter:
    """Samples the CPU time of all processes of a throw-away SLURM, ended ones too."""

    def __init__(self, cluster: Cluster) -> None:
        self._space = os.readlink(f"/proc/{cluster.pid}/ns/pid")
        self._ticks = os.sysconf("SC_CLK_TCK")
        self._samples: list[tuple[float, float]] = []
        Thread(target=self._sample, daemon=True).start()

    def at(self, moment: float) -> float:
        """CPU seconds up to a moment (seconds since 1970)."""
        past = [used for when, used in self._samples if when <= moment]
        return max(past, default=0.0)  # At the end processes leave without a trace.

    def _sample(self) -> None:
        while True:
            began = time.time()
            self._samples.append((began, self._used()))
            time.sleep(SAMPLE_S)

    def _used(self) -> float:
        total = 0
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink(f"/proc/{entry}/ns/pid") != self._space:
                    continue
                text = Path(f"/proc/{entry}/stat").read_text(errors="replace")
            except OSError:
                continue
            # Own time, and that of children whose end it has waited for. Those of
            # nobody are never waited for here, and so are still among the processes.
            total += sum(int(word) for word in text.rpartition(")")[2].split()[11:15])
        return total / self._ticks


def measure(nodes: int, repeats: int, folder: Path) -> tuple[list[Run], str]:
    """Run the job several times; return what was reached, and SLURM's version."""
    checkout = workplace.make_checkout(folder / "repo")
    variables = workplace.job_variables(folder)
    words = [f"--nodes={nodes}", JOB, *workplace.tiny_training(folder)]
    words += ["grpo.max_num_steps=1", "policy.train_micro_batch_size=2"]
    words += ["checkpointing.enabled=false"]
    found = []
    with Cluster(folder / "slurm", nodes=nodes) as cluster:
        meter = Meter(cluster)
        version = cluster.run("sbatch", "--version").stdout.split()[-1]
        for _ in range(repeats):
            number = cluster.submit(*words, cwd=checkout, env=variables)
            job = cluster.wait(number, ENDED, LIMIT_S)
            idle = _all_idle(cluster)
            run = checkout / "results" / "grpo_smollm2_cpu" / str(number)
            if job["JobState"] != "COMPLETED":
                raise SystemExit((run / "job.log").read_text())
            moments = timeline.read(run / "attempts" / f"{number}.0")
            moments.append(timeline.Moment("idle", idle))
            before = meter.at(moments[0].at)
            found.append([(one, meter.at(one.at) - before) for one in moments])
            print(_line(moments), file=sys.stderr, flush=True)
    return found, version


def _all_idle(cluster: Cluster) -> float:
    """Wait until SLURM calls all nodes idle; return when."""
    while set(cluster.run("sinfo", "-h", "-o", "%t").stdout.split()) != {"idle"}:
        time.sleep(0.1)
    return time.time()


def _line(moments: list[timeline.Moment]) -> str:
    at = {one.name: one.at - moments[0].at for one in moments}
    return (
        f"ready {at[READY]:.1f} s, first step {at['stepped']:.1f} s, nodes free "
        f"{at['idle'] - at['ended']:.1f} s after the driver; load "
        f"{os.getloadavg()[0]:.1f}"
    )


def table(runs: list[Run]) -> str:
    """Return the medians as a Markdown table."""
    at: dict[str, list[float]] = {}
    used: dict[str, list[float]] = {}
    for run in runs:
        for one, cpu_s in run:
            at.setdefault(one.name, []).append(one.at - run[0][0].at)
            used.setdefault(one.name, []).append(cpu_s)
    median = {name: statistics.median(times) for name, times in at.items()}
    lines = ["| moment | s since the job began (median) | range | CPU s until then |"]
    lines.append("|---|---|---|---|")
    for name in sorted(median, key=median.__getitem__):
        meaning = timeline.MOMENTS.get(name, "SLURM calls all nodes idle")
        spread = f"{min(at[name]):.1f}–{max(at[name]):.1f}"
        cpu_s = statistics.median(used[name])
        lines.append(f"| {meaning} | {median[name]:.1f} | {spread} | {cpu_s:.1f} |")
    ended = [idle - end for idle, end in zip(at["idle"], at["ended"], strict=True)]
    lines += [
        "",
        f"Ready for training after {median[READY]:.1f} s; first step after "
        f"{median['stepped']:.1f} s; nodes free {statistics.median(ended):.1f} s after "
        "the driver's end.",
    ]
    return "\n".join(lines)


def section(text: str, options: argparse.Namespace, slurm: str) -> str:
    """Return the table with its circumstances."""
    version = importlib.metadata.version
    return "\n".join(
        [
            text,
            "",
            f"- Date: {datetime.datetime.now(datetime.UTC).date()}",
            f"- Machine: {cpu_model()}, {os.cpu_count()} cores shared by "
            f"{options.nodes} nodes; load before: {options.load:.1f}",
            f"- Versions: Python {platform.python_version()}, torch "
            f"{version('torch')}, ray {version('ray')}, SLURM {slurm}",
            f"- Command: `python -m benchmarks.bringup --nodes {options.nodes} "
            f"--repeats {options.repeats} --write`",
        ]
    )


def main(argv: Any = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    options = parser.parse_args(argv)
    if missing := missing_programs():
        parser.error(f"missing {', '.join(missing)}: apt-get install {PACKAGES}")
    options.load = os.getloadavg()[0]
    # A short path: Ray puts sockets below it, of 107 letters at most.
    folder = Path(tempfile.mkdtemp(prefix="nrl-", dir="/tmp"))
    try:
        runs, slurm = measure(options.nodes, options.repeats, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = section(table(runs), options, slurm)
    print(text)
    if options.write:
        put(SECTION, TITLE, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
