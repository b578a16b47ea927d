"""The agent of one node of a job: brings Ray up, runs the driver on the head.

`slurm/job.sh` starts it once per node by one srun. It knows nothing about training:
the driver's exit code becomes its own. Every wait watches its children, the other
nodes and the signals of the batch shell, and has a deadline or ends with the job.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nemo_rl.launch import account, timeline
from nemo_rl.launch import bulletin as board
from nemo_rl.launch.allocation import Allocation, address_of
from nemo_rl.launch.bulletin import Bulletin
from nemo_rl.launch.ending import JOB_LOG, Ending
from nemo_rl.launch.failure import Failure
from nemo_rl.launch.guard import bury, stand_guard
from nemo_rl.launch.local_ray import LocalRay
from nemo_rl.launch.preflight.node import Preflight
from nemo_rl.launch.preflight.storage import claim
from nemo_rl.launch.processes import Child, adopt_orphans
from nemo_rl.launch.ray_nodes import alive_addresses, all_joined, who_is_missing
from nemo_rl.launch.ray_start import (
    client_environment,
    hold_ports,
    write_token,
)
from nemo_rl.launch.record import record_start
from nemo_rl.launch.watch import (
    REQUEUE,
    STOPPED,
    NodeLost,
    StopRequested,
    Watcher,
)
from nemo_rl.launch.watchdog import NodeWatchdog
from nemo_rl.utils import env, pulse
from nemo_rl.utils.exceptions import LaunchError

SLURMS_LINES = 200
"""Of job.log, in which SLURM may have said why it ends the job."""
RAY_READY = "ray_ready"
"""File of the node-local folder: every node has joined."""


class Agent(Watcher):
    """One node's part of the job; `run` returns the exit code."""

    def __init__(
        self, allocation: Allocation, options: argparse.Namespace, ending: Ending
    ) -> None:
        """Choose addresses, ports and folders; nothing is started yet."""
        name = allocation.node_name
        self.ip = address_of(name, alone=allocation.num_nodes == 1)
        ending.board.ip = self.ip
        super().__init__(allocation, options, ending.board)
        self.ports, self._held = hold_ports(allocation.job_id)
        self.temp_dir = ending.temp_dir
        self.ending = ending
        self.witness = ending.witness
        self.failure: Failure | None = None
        self._log = options.run_dir / JOB_LOG
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
        except NodeLost as stop:
            code, self.failure = stop.code, stop.blame(self.job.node_name, self.state)
            self.say(str(stop))
        except StopRequested as stop:
            code = stop.code
            self.say(str(stop))
            self.bulletin.beat("failed", str(stop))
            if self.job.is_head and code == STOPPED:
                self.failure = self._slurms_word()
        finally:
            error = sys.exception()
            if error is not None:
                self.failure = NodeLost(f"{type(error).__name__}: {error}").blame(
                    self.job.node_name, self.state
                )
            self.ending.run(code, self.failure, grace_s=grace_s)
            self.bulletin.reached("released")
        return code

    def _play(self) -> int:
        """Check the node, then play its role; a spare node waits for the end."""
        allocated = self.job
        if self.job.is_head:
            self._record(allocated)
        if not env.off("NEMO_RL_PREFLIGHT"):
            self.job = Preflight(self, temp_dir=self.temp_dir, ports=self.ports).run()
            self.ending.job = self.job
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
            lambda: all_joined(address, self.job.num_nodes) or driver.returncode,
            max(1.0, limit - (time.monotonic() - began)),
            lambda: (
                f"after {limit:.0f} s these nodes had not joined Ray: "
                f"{who_is_missing(address, self.bulletin, self.job.node_names)}"
            ),
        )
        if driver.returncode is None:
            self.bulletin.reached("joined")
            self.say(
                f"{self.job.num_nodes} nodes, {self.job.num_cpus} CPUs and "
                f"{self.job.num_gpus} GPUs each, up in {time.monotonic() - began:.0f} s"
            )
            (self.temp_dir / RAY_READY).touch()
        return self._follow(driver)

    def _start_driver(self, address: str) -> Child:
        """Start the driver, which reads its recipe and data while Ray comes up.

        It joins Ray when the file of NEMO_RL_RAY_READY is there.
        """
        command = [sys.executable, "-X", "faulthandler", "-m", "nemo_rl.launch.driver"]
        command += [self.options.recipe, *self.options.overrides]
        command += [f"cluster.num_nodes={self.job.num_nodes}"]
        command += ["--run-dir", str(self.options.run_dir)]
        command += ["--moments", str(self.bulletin.path(timeline.DRIVER))]
        command += ["--account", str(self.bulletin.path(account.ACCOUNT))]
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
        code = self.until(lambda: driver.returncode)
        self.bulletin.reached("ended")
        if code == 128 + signal.SIGTERM and self.was_asked:
            self.say("the driver was ended by SIGTERM before or after training")
            code = REQUEUE
        self.say(f"the driver ended with exit code {code}")
        if self.watchdog is not None and self.watchdog.verdict is not None:
            self.failure = account.of_hang(self.job.node_name, self.watchdog.verdict)
            return code
        if code in (0, REQUEUE):
            return code
        failure = self._slurms_word()
        if failure is None and code == STOPPED:
            return code
        if failure is None:
            if code != 2:
                self.call_roll()
            failure = account.blame_driver(
                self.job, self.bulletin, self._log, code=code, pid=driver.pid
            )
        self.failure = replace(failure, phase=self.state)
        again = code != 2 and failure.explained(self.witness.lines()).again
        return REQUEUE if again else code

    def _slurms_word(self) -> Failure | None:
        """What SLURM said when it ended the job; it is the cause of all else then."""
        tail = account.attempt_tail(self._log, self.job.job_id, SLURMS_LINES)
        return account.of_slurm(self.job.node_name, tail)

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
        job = Allocation.from_environment(env.inherited())
        ending = Ending(
            job,
            Bulletin(options.attempt_dir, job.node_name),
            run_dir=options.run_dir,
            temp_dir=options.temp_root / f"nemo_rl-{job.job_id}-{job.node_index}",
        )
        dead = stand_guard()
        if dead is not None:
            return bury(ending, *dead, requeue=REQUEUE)
        return Agent(job, options, ending).run()
    except LaunchError as error:
        print(f"nemo_rl.launch.node: {error}", file=sys.stderr, flush=True)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
