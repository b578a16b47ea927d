"""Real kills in real jobs: each names the right culprit and frees all nodes at once.

The driver's training is a sleep (`sleeping_driver.py`); the job goes on through all the
kills, attempt by attempt. `test_training.py` loses a node while it trains. Not covered,
for lack of the hardware: GPUs, NCCL, the OOM killer of a control group.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.slurm import workplace

pytestmark = pytest.mark.timeout(600)

RECIPE = "recipes/grpo_smollm2_cpu.sh"
HERE = Path(__file__).resolve().parent
FREED_S = 40.0
"""From a kill to the last process of the job gone, on every node. Alone on a machine it
takes a fifth of it, but tests share theirs."""
START_S = 240.0
FINISHED = {"COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT"}


@contextmanager
def within(what, seconds):
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    print(f"{what}: took {took:.1f} s, bound {seconds:.0f} s")
    assert took < seconds, what


def until(ready, timeout, evidence=lambda: ""):
    deadline = time.monotonic() + timeout
    while not (found := ready()):
        assert time.monotonic() < deadline, evidence()
        time.sleep(0.2)
    return found


class Processes:
    """The processes of a job, as the host of all its nodes sees them."""

    def __init__(self, run_dir):
        self.run_dir = run_dir

    def all(self, attempt):
        """(process id, node, command) of what works for an attempt, on any node."""
        name = f"{self.run_dir.name}.{attempt}"
        mark = str(self.run_dir / "attempts" / name).encode()
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            folder = Path("/proc") / entry
            try:
                command = (folder / "cmdline").read_bytes()
                # Where Ray's token is tells the attempt.
                known = mark in command or mark in (folder / "environ").read_bytes()
                node = self._node(folder) if known and b"srun" not in command else ""
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if node and command:
                text = command.replace(b"\0", b" ").decode(errors="replace")
                found.append((int(entry), node, text[:200]))
        return found

    @staticmethod
    def _node(folder):
        """The node whose network the process has."""
        try:
            text = (folder / "net" / "fib_trie").read_text()
        except OSError:
            return ""
        match = re.search(r"198\.18\.0\.(\d\d)\b", text)
        return f"node{int(match[1]) - 10}" if match else ""

    def kill(self, pattern, node, attempt):
        """Kill the newest process whose command fits; return its number there."""

        def look():
            found = self.all(attempt)
            return [
                p for p, at, text in found if at == node and re.search(pattern, text)
            ]

        pid = max(until(look, 60, lambda: f"no {pattern}: {self.all(attempt)}"))
        status = (Path("/proc") / str(pid) / "status").read_text()
        os.kill(pid, signal.SIGKILL)
        return int(re.search(r"NSpid:.*\t(\d+)$", status, re.MULTILINE)[1])


@pytest.fixture(scope="module")
def sleeping(checkout, short_dir) -> Path:
    """A checkout whose training sleeps."""
    driver = (HERE / "sleeping_driver.py").read_text()
    return workplace.with_driver(checkout, short_dir / "sleeping", driver)


@pytest.fixture
def submit(cluster, sleeping, job_env):
    """Return a function that submits a job and cancels it in the end."""
    runs = []

    def submit(*overrides, nodes=2):
        secret = {"HF_TOKEN": "hf_a_long_secret", "NEMO_RL_PREFLIGHT": "0"}
        words = [f"--nodes={nodes}", RECIPE, "policy.model_name=none", *overrides]
        runs.append(Run(cluster, sleeping, job_env | secret, words))
        return runs[-1]

    yield submit
    for run in runs:
        cluster.run("scancel", str(run.number), check=False)
        until(run.freed, 60, run.left)


class Run:
    """A job that is hurt, and goes on."""

    def __init__(self, cluster, checkout, env, arguments):
        self.cluster = cluster
        self.number = cluster.submit(*arguments, cwd=checkout, env=env)
        self.folder = checkout / "results" / "grpo_smollm2_cpu" / str(self.number)
        self.processes = Processes(self.folder)
        self.attempt = 0

    def log(self):
        path = self.folder / "job.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def attempt_dir(self):
        return self.folder / "attempts" / f"{self.number}.{self.attempt}"

    def saved(self):
        path = self.folder / "PROGRESS"
        return path.read_text() if path.exists() else ""

    def trains(self):
        """Wait until an attempt has saved something of its own; return its nodes.

        On a busy machine Ray may not come up in time, and the attempt after it does.
        """
        before = self.saved()
        with within("trains", START_S):
            until(lambda: self.saved() != before, START_S, self.log)
        begun = (self.folder / "attempts").glob("*/attempt.json")
        self.attempt = max(int(path.parent.name.split(".")[1]) for path in begun)
        return json.loads((self.attempt_dir / "attempt.json").read_text())["node_names"]

    def failure(self):
        return json.loads((self.attempt_dir / "failure.json").read_text())

    def left(self):
        return "\n".join(map(str, self.processes.all(self.attempt)))

    def freed(self):
        return not self.processes.all(self.attempt)

    def part(self):
        """What the attempt printed."""
        return self.log().rpartition(f"attempt {self.attempt}: recipes")[2]

    def begins_again(self):
        return f"attempt {self.attempt + 1}: recipes" in self.log()

    def over(self, what):
        """Wait for the attempt's end: no process is left; return what it printed."""
        with within(f"{what}: all nodes free", FREED_S):
            until(self.freed, 90, lambda: f"{self.left()}\n{self.log()}")
        return self.part()

    def survives(self, pattern, node):
        """Kill a process; return the failure once the job is in the queue again."""
        pid = self.processes.kill(pattern, node, self.attempt)
        self.over(pattern)
        with within(f"{pattern}: requeued", 30):
            until(lambda: "requeued: the next" in self.part(), 60, self.log)
        found, part = self.failure(), self.part()
        print(part)
        assert part.count("---- first failure of attempt") == 1, part
        assert found["summary"] in part and found["cure"][:40] in part
        assert found["node"] == node
        nodes = json.loads((self.attempt_dir / "attempt.json").read_text())
        for name in nodes["node_names"]:
            assert list((self.attempt_dir / f"ray-logs-{name}").glob("raylet*")), name
        assert "hf_a_long_secret" not in self.texts()
        return found, pid

    def texts(self):
        paths = [p for p in self.folder.rglob("*") if p.is_file()]
        return "".join(path.read_text(errors="replace") for path in paths)


def test_what_is_killed_is_named_and_the_job_goes_on(submit):
    run = submit("grpo.max_num_steps=100000")

    head, other = run.trains()
    found, pid = run.survives(r"ray::", other)
    assert (found["process"], found["rank"], found["pid"]) == ("worker", 1, pid)
    assert (found["group"], found["phase"]) == ("Sleeper", "training")
    assert "killed without a word" in found["cause"]
    assert "the sleeper of rank 1 begins" in found["lines"]

    head, other = run.trains()
    assert f" failed: node {other}: worker of rank 1 (Sleeper)" in run.log()
    found, pid = run.survives(r"launch\.node", other)
    assert (found["process"], found["signal"]) == ("agent", "SIGKILL")
    assert (found["pid"], found["phase"]) == (pid, "joined")


@pytest.mark.slow
def test_so_are_daemons_and_those_of_the_head(submit):
    run = submit("grpo.max_num_steps=100000")

    head, other = run.trains()
    found, _ = run.survives(r"raylet/raylet", other)
    assert (found["process"], found["signal"]) == ("raylet", "SIGKILL")
    assert "killed without a word" in found["cause"]

    head, other = run.trains()
    found, pid = run.survives(r"launch\.driver", head)
    assert (found["process"], found["pid"]) == ("driver", pid)
    assert (found["signal"], found["exit_code"]) == ("SIGKILL", 137)
    assert any("slept step" in line for line in found["lines"])
    assert "killed without a word" in found["cause"]

    head, other = run.trains()
    found, _ = run.survives(r"gcs_server", head)
    assert (found["process"], found["signal"]) == ("gcs_server", "SIGKILL")

    head, other = run.trains()
    found, pid = run.survives(r"launch\.node", head)
    assert (found["process"], found["pid"]) == ("agent", pid)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mistake", "code", "who", "cause"),
    [
        ("bug", 1, "node node0: driver, process", ""),
        ("full", 1, "rank 1 on host node1 failed in step(): OSError", "a disk is full"),
        ("crash", 75, "node node1: worker of rank 1", "native code crashed"),
    ],
)
def test_what_fails_by_itself_ends_with_the_right_code(
    cluster, submit, mistake, code, who, cause
):
    cluster.run("scontrol", "update", "nodename=node[2-3]", "state=drain", "reason=t")
    run = submit("grpo.max_num_steps=9", f"env.reward_fn=x:{mistake}")
    until(lambda: (run.attempt_dir / "exit_code").exists(), START_S, run.log)
    run.over(mistake)
    cluster.run("scontrol", "update", "nodename=node[2-3]", "state=resume")
    found, part = run.failure(), run.part()
    print(part)
    assert found["summary"].startswith(who), found
    assert found["cause"] == cause and "---- first failure" in part
    assert found["signal"] == ("SIGSEGV" if mistake == "crash" else "")
    assert (run.attempt_dir / "exit_code").read_text() == str(code)
    if code == 1:
        job = cluster.wait(run.number, FINISHED, 60)
        assert (job["JobState"], job["ExitCode"]) == ("FAILED", "1:0")


@pytest.mark.slow
def test_a_daemon_of_slurm_is_no_loss_until_slurm_says_so(cluster, submit):
    run = submit("grpo.max_num_steps=100000")
    head, other = run.trains()
    cluster.tell(f"crash {other}")
    run.trains()  # Its slurmd is gone, and the job does not mind.
    down = ["state=down", "reason=slurmd"]
    cluster.run("scontrol", "update", f"nodename={other}", *down)
    part = run.over("slurmd")
    print(part)
    until(run.begins_again, 120, run.log)
    cluster.tell(f"start {other}")
    assert other not in run.trains()
    assert f" failed: node {other} failed, says SLURM" in run.log()


@pytest.mark.slow
def test_the_heads_power(cluster, submit):
    run = submit("grpo.max_num_steps=100000")
    head, other = run.trains()
    cluster.tell(f"kill {head}")
    with within("the other node is free", 35.0 + FREED_S):
        until(run.freed, 120, lambda: f"{run.left()}\n{run.log()}")
    found = run.failure()
    assert (found["node"], found["process"]) == (head, "node")
    assert run.part().count("---- first failure of attempt") == 1
    cluster.run("scontrol", "update", f"nodename={head}", "state=down", "reason=dead")
    until(run.begins_again, 120, run.log)
    cluster.tell(f"start {head}")
    assert head not in run.trains()
    assert f" failed: node {head} is lost" in run.log()
