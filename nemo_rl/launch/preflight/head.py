"""The head's part in the checks of a job: facts for all, gathering, the verdict.

Knows nothing about what is checked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nemo_rl.api.functional import load_recipe
from nemo_rl.config.loading import load_recipe_mapping
from nemo_rl.config.master import MasterConfig
from nemo_rl.launch.preflight import collective
from nemo_rl.launch.preflight.checks import OK, bad
from nemo_rl.launch.preflight.network import ClockServer
from nemo_rl.launch.preflight.verdict import REPORT, Verdict, decide
from nemo_rl.launch.ray_start import BLOCK, is_free
from nemo_rl.launch.watch import Refused
from nemo_rl.utils.exceptions import NemoRLError

if TYPE_CHECKING:
    from nemo_rl.launch.preflight.node import Preflight

LIMIT_S = 40.0
"""For a node's own checks, from its first sign of life; with those among nodes 60."""


class Head:
    """What only the first node does."""

    def __init__(self, own: Preflight) -> None:
        """Read the recipe and serve the clock.

        Raises:
            Refused: the recipe is wrong.
        """
        self.own = own
        self.job = own.job
        try:
            self.config = self._recipe()
        except NemoRLError as error:
            raise Refused(str(error), error.exit_code) from error
        # The upper end of the block: Ray's named ports are at the lower one.
        high = range(own.ports.last - 1, own.ports.first + BLOCK // 2, -1)
        free = (port for port in high if is_free(port))
        self.clock = ClockServer(next(free))
        self.meeting_port = next(free)

    def _recipe(self) -> MasterConfig:
        options = self.own.watch.options
        # SLURM's number of nodes counts, as for the driver: sbatch --nodes changes it.
        mapping = load_recipe_mapping(options.recipe, options.overrides)
        spare = (mapping.get("cluster") or {}).get("spare_nodes") or 0
        self.needed = self.job.num_nodes
        if isinstance(spare, int):  # Anything else is refused below.
            self.needed = max(1, self.needed - spare)
        nodes = f"cluster.num_nodes={self.needed}"
        config = load_recipe(options.recipe, [*options.overrides, nodes])
        if config.cluster.gpus_per_node > self.job.num_gpus:
            raise Refused(
                f"cluster.gpus_per_node={config.cluster.gpus_per_node}, but SLURM gave "
                f"{self.job.num_gpus} GPUs of each node: change the recipe or sbatch's "
                "--gpus-per-node.",
                2,
            )
        return config

    def open(self) -> dict[str, Any]:
        """Return what every node has to know."""
        return {
            "ip": self.own.board.ip,
            "port": self.clock.port,
            "at": time.time(),
            "needed": self.needed,
            "workers": self.config.cluster.workers_per_node,
            "checkpoint_dir": str(self.config.checkpointing.checkpoint_dir),
        }

    def decide(self, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        """Gather, judge, publish the verdict and return it."""
        said = self._gather()
        verdict = decide(self.job, said, needed=self.needed)
        own = self.own
        ring = (
            verdict.enough
            and len(verdict.go) > 1
            and not own.skip & {collective.NODE_NAME, collective.RING_NAME}
            # A node whose ranks could not even meet one another has been told of.
            and all(
                found.verdict == OK
                for found in verdict.findings
                if found.name == collective.NODE_NAME and found.node in verdict.go
            )
        )
        if ring:
            plan = {
                "nodes": list(verdict.go),
                "address": own.board.node_status(verdict.go[0])["ip"],
                "port": self.meeting_port,
            }
            own.publish("ring", plan)
            if self.job.node_name in verdict.go:
                own.join(plan)
            found = self._ring_results(verdict)
            verdict.add(collective.judge_ring(verdict.go, found, own.kind))
        else:
            own.publish("ring", {"nodes": []})
        seconds = time.monotonic() - own.began
        last = self._last_attempt()
        verdict.write(own.board, seconds=seconds, last=last)
        for line in verdict.lines(seconds):
            own.watch.say(line)
        verdict.enforce(last)
        answer = {"go": list(verdict.go)}
        own.publish("verdict", answer)
        return answer

    def _gather(self) -> dict[str, Any]:
        """Wait for every node's findings; a node that is late has none."""
        own = self.own
        started = own.watch.options.start_timeout
        first: dict[str, float] = {}
        said: dict[str, Any] = {}

        def all_said() -> dict[str, Any] | None:
            there = own.listed()
            now = time.monotonic()
            for name in self.job.node_names:
                if name in said:
                    continue
                if f"hello-{name}" in there and name not in first:
                    first[name] = own.began + own.age(f"hello-{name}")
                if f"node-{name}" in there:
                    said[name] = own.read(f"node-{name}")
                elif name in first and now - first[name] > LIMIT_S:
                    said[name] = self._late(name, "its checks did not end", LIMIT_S)
                elif name not in first and now - own.began > started:
                    said[name] = self._late(name, "no sign of life", started)
                elif own.board.node_status(name)["state"] == "failed":
                    said[name] = self._late(name, "its agent failed", 0)
            return said if len(said) == self.job.num_nodes else None

        return own.watch.until(all_said)

    def _late(self, name: str, what: str, limit_s: float) -> dict[str, Any]:
        cure = (
            "it hangs, its container does not start, or its files do not reach the "
            "head (no shared file system, a stale cache)"
        )
        found = bad(f"{what} in {limit_s:.0f} s", "an answer", cure)
        return {"findings": [replace(found, name="sharedfs", node=name).to_dict()]}

    def _ring_results(self, verdict: Verdict) -> dict[str, Any]:
        deadline = time.monotonic() + collective.FABRIC_S + 2

        def results() -> dict[str, Any] | None:
            there = self.own.listed()
            ready = [name for name in verdict.go if f"ring-{name}" in there]
            if len(ready) < len(verdict.go) and time.monotonic() < deadline:
                return None
            return {name: self.own.read(f"ring-{name}") for name in ready}

        return self.own.watch.until(results)

    def _last_attempt(self) -> Any:
        """Return what the attempt before wrote, None where there was none."""
        folder = self.own.board.folder
        stem, _, number = folder.name.rpartition(".")
        if not number.isdigit() or number == "0":
            return None
        path = folder.with_name(f"{stem}.{int(number) - 1}") / REPORT
        return json.loads(path.read_text("utf-8")) if path.is_file() else None
