"""The agent of one node of a job: brings Ray up, runs the driver on the head.

`slurm/job.sh` starts it once per node by one srun. It knows nothing about training:
the driver's exit code becomes its own. Every wait watches its children, the other
nodes and the signals of the batch shell, and has a deadline or ends with the job.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nemo_rl.launch import bulletin as board
from nemo_rl.launch import timeline
from nemo_rl.launch.allocation import Allocation, address_of
from nemo_rl.launch.bulletin import Bulletin
from nemo_rl.launch.local_ray import LocalRay
from nemo_rl.launch.preflight.node import Preflight
from nemo_rl.launch.preflight.storage import claim
from nemo_rl.launch.processes import Child, adopt_orphans, end_all
from nemo_rl.launch.ray_nodes import alive_addresses
from nemo_rl.launch.ray_start import (
    client_environment,
    hold_ports,
    write_token,
)
from nemo_rl.launch.record import record_start
from nemo_rl.launch.watch import REQUEUE, HeadLost, NodeLost, StopRequested, Watcher
from nemo_rl.launch.watchdog import NodeWatchdog
from nemo_rl.utils import env, pulse
from nemo_rl.utils.exceptions import LaunchError

ROLL_CALL_S = 12.0
RAY_READY = "ray_ready"
"""File of the node-local folder: every node has joined."""
JOB_LOG = "job.log"
"""In the run folder; where `slurm/job.sh` sends the job's output."""


class Agent(Watcher):
    """One node's part of the job; `run` returns the exit code."""

    def __init__(self, allocation: Allocation, options: argparse.Namespace) -> None:
        """Choose addresses, ports and folders; nothing is started yet."""
        name = allocation.node_name
        self.ip = address_of(name, alone=allocation.num_nodes == 1)
        super().__init__(
            allocation, options, Bulletin(options.attempt_dir, name, ip=self.ip)
        )
        self.ports, self._held = hold_ports(allocation.job_id)
        folder = f"nemo_rl-{allocation.job_id}-{allocation.node_index}"
        self.temp_dir = options.temp_root / folder
        self.token = self.bulletin.path(board.TOKEN)
        self.pulses = self.temp_dir / "pulse"

    def run(self) -> int:
        """Play this node's role until the job ends; leave nothing behind."""
        adopt_orphans()
        code, grace_s = 1, 0.0
        self.bulletin.reached("agent", **timeline.handed(env.inherited()))
        try:
            self._claim_folder()
            self._local_ray = self._prepare_ray()
            code = self._play()
            grace_s = 2.0
        except (NodeLost, StopRequested) as stop:
            code = stop.code
            self.say(str(stop))
            if isinstance(stop, HeadLost):
                with (self.options.run_dir / JOB_LOG).open("a") as log:
                    print(f"[{self.job.node_name}] {stop}", file=log)
            self.bulletin.beat("failed", str(stop))
            if isinstance(stop, NodeLost):
                self.bulletin.record_failure(str(stop))
                self._keep_ray_logs()
        finally:
            if self.job.is_head:
                self.token.unlink(missing_ok=True)
                self.bulletin.publish(board.EXIT_CODE, code)
            end_all(grace_s)
            shutil.rmtree(self.temp_dir, ignore_errors=True)
            self.bulletin.reached("released")
        return code

    def _play(self) -> int:
        """Check the node, then play its role; a spare node waits for the end."""
        allocated = self.job
        if self.job.is_head:
            self._record(allocated)
        if not env.off("NEMO_RL_PREFLIGHT"):
            self.job = Preflight(self, temp_dir=self.temp_dir, ports=self.ports).run()
            self.bulletin.reached("checked")
            if self.job.is_spare:
                self.state = "spare"
                self.until(self.ended)
                return 0
            if self.job.is_head and not allocated.is_head:
                self._record(allocated)
            if not self.ports.is_free:
                self._held.close()
                self.ports, self._held = hold_ports(self.job.job_id)
            self.state = "starting"
        self.watchdog = NodeWatchdog(self.bulletin, self.job.node_names, self.pulses)
        return self._run_head() if self.job.is_head else self._run_worker()

    # ---- head

    def _record(self, allocated: Allocation) -> None:
        """Write down what this attempt has, the nodes that train first."""
        names = dict.fromkeys((*self.job.node_names, *allocated.node_names))
        record_start(
            self.options.run_dir,
            self.options.attempt_dir,
            replace(self.job, num_nodes=allocated.num_nodes, node_names=tuple(names)),
            recipe=self.options.recipe,
            overrides=self.options.overrides,
            temp_dir=self.temp_dir,
        )

    def _run_head(self) -> int:
        write_token(self.token)
        address = f"{self.ip}:{self.ports.gcs}"
        env.apply(client_environment(self.token))
        ray = self._start_ray(None)
        driver = self._start_driver(address)
        limit = self.options.start_timeout
        began = time.monotonic()
        self.until(
            lambda: alive_addresses(address) or driver.returncode,
            limit,
            lambda: (
                f"node {self.job.node_name}: Ray did not answer on {address} "
                f"in {limit:.0f} s:{ray.tail()}"
            ),
        )
        self.bulletin.reached("ray")
        self.bulletin.publish(board.HEAD, {"address": address})
        self.until(
            lambda: self._all_joined(address) or driver.returncode,
            max(1.0, limit - (time.monotonic() - began)),
            lambda: self._who_is_missing(address),
        )
        if driver.returncode is None:
            self.bulletin.reached("joined")
            self.say(
                f"{self.job.num_nodes} nodes, {self.job.num_cpus} CPUs and "
                f"{self.job.num_gpus} GPUs each, up in {time.monotonic() - began:.0f} s"
            )
            (self.temp_dir / RAY_READY).touch()
        return self._follow(driver)

    def _all_joined(self, address: str) -> bool | None:
        return len(alive_addresses(address) or []) >= self.job.num_nodes or None

    def _who_is_missing(self, address: str) -> str:
        alive = set(alive_addresses(address) or [])
        missing = []
        for name in self.job.node_names:
            status = self.bulletin.node_status(name)
            if status["ip"] not in alive:
                missing.append(f"{name} ({status['state']})")
        return (
            f"after {self.options.start_timeout:.0f} s these nodes had not joined Ray: "
            f"{', '.join(missing)}"
        )

    def _start_driver(self, address: str) -> Child:
        """Start the driver, which reads its recipe and data while Ray comes up.

        It joins Ray when the file of NEMO_RL_RAY_READY is there.
        """
        command = [sys.executable, "-m", "nemo_rl.launch.driver"]
        command += [self.options.recipe, *self.options.overrides]
        command += [f"cluster.num_nodes={self.job.num_nodes}"]
        command += ["--run-dir", str(self.options.run_dir)]
        command += ["--moments", str(self.bulletin.path(timeline.DRIVER))]
        variables = env.inherited() | {
            "RAY_ADDRESS": address,
            "RAY_TMPDIR": str(self.temp_dir),
            "NEMO_RL_RAY_READY": str(self.temp_dir / RAY_READY),
        }
        driver = Child("driver", command, variables)
        self.bulletin.reached("driver")
        return driver

    def _follow(self, driver: Child) -> int:
        self.state = "training"
        self.driver = driver  # From now on signals are for it.
        code = self.until(lambda: self.driver.returncode)
        self.bulletin.reached("ended")
        if code == 128 + signal.SIGTERM and self.was_asked:
            self.say("the driver was ended by SIGTERM before or after training")
            code = REQUEUE
        if self.watchdog is not None and self.watchdog.verdict is not None:
            self.bulletin.record_failure(self.watchdog.verdict.text)
        elif code not in (0, 2, REQUEUE):
            self._call_roll()
        self.say(f"the driver ended with exit code {code}")
        return code

    def _call_roll(self) -> None:
        """Find out whether the driver failed because a node did.

        Ray tells the driver of a lost node before the silence limit has passed;
        a node that does not beat once more is the cause.
        """
        names = self.job.node_names[1:]
        before = {name: self.bulletin.node_status(name)["beat"] for name in names}

        def mute() -> list[str]:
            return [
                name
                for name in names
                if self.bulletin.node_status(name)["beat"] == before[name]
            ]

        self.until(
            lambda: None if mute() else True,
            ROLL_CALL_S,
            lambda: (
                f"node {', '.join(mute())} is lost: the driver failed and it "
                "does not answer"
            ),
        )

    # ---- worker

    def _run_worker(self) -> int:
        head = self.until(
            lambda: self.bulletin.read(board.HEAD) or ({} if self.ended() else None),
            self.options.start_timeout,
            lambda: (
                f"head {self.job.node_names[0]} did not say where Ray is "
                f"in {self.options.start_timeout:.0f} s"
            ),
        )
        if not head:
            return 0
        self._start_ray(head["address"])
        self.state = "joined"
        self.until(self.ended)
        return 0

    # ---- both

    def _claim_folder(self) -> None:
        try:
            claim(self.temp_dir)
        except (LaunchError, OSError) as error:
            raise NodeLost(f"node {self.job.node_name}: {error}") from error

    def _prepare_ray(self) -> LocalRay:
        env.apply({pulse.FOLDER: str(self.pulses)})
        log = self.bulletin.path(f"ray-{self.job.node_name}.log")
        return LocalRay(self.temp_dir, token=self.token, log=log)

    def _start_ray(self, head_address: str | None) -> Child:
        self.ray = self._local_ray.start(
            self.job, ip=self.ip, ports=self.ports, head_address=head_address
        )
        return self.ray

    def _keep_ray_logs(self) -> None:
        logs = self.temp_dir / "session_latest" / "logs"
        target = self.bulletin.path(f"ray-logs-{self.job.node_name}")
        if logs.is_dir():
            shutil.copytree(logs, target, dirs_exist_ok=True, symlinks=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line that `slurm/job.sh` writes."""
    parser = argparse.ArgumentParser(prog="nemo_rl.launch.node", description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--attempt-dir", type=Path, required=True)
    parser.add_argument("--temp-root", type=Path, default=Path("/tmp"))
    parser.add_argument("--start-timeout", type=float, default=300.0)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the agent; problems of the start are one paragraph and exit code 2."""
    options = parse(argv)
    try:
        return Agent(Allocation.from_environment(env.inherited()), options).run()
    except LaunchError as error:
        print(f"nemo_rl.launch.node: {error}", file=sys.stderr, flush=True)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
