"""A node's part in the checks of a job before Ray starts; `head.py` decides.

All of it goes through files below the attempt folder, so that it also shows whether
the nodes share a file system. Per node it costs the head two small files read; no
node reads another's but the head's. Knows nothing about Ray.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_rl.launch.allocation import Allocation
from nemo_rl.launch.preflight import collective, gpus, network, rows, storage, system
from nemo_rl.launch.preflight.checks import (
    WARN,
    Check,
    Context,
    Finding,
    Running,
    bad,
    chosen,
    ok,
)
from nemo_rl.launch.preflight.head import LIMIT_S, Head
from nemo_rl.launch.processes import Child
from nemo_rl.launch.ray_start import PortPlan
from nemo_rl.launch.timeline import handed
from nemo_rl.launch.watch import Watcher
from nemo_rl.utils import env

FOLDER = "preflight"
SEEN_S = 10.0
"""How old a file may be when another node sees it."""
START_S = 60.0
"""How long a container may take to start before it is worth a warning."""
NODE_CHECKS = (*gpus.CHECKS, *system.CHECKS, *storage.CHECKS, *network.CHECKS)
NAMES = (
    *(check.name for check in NODE_CHECKS),
    *("start", "sharedfs", collective.NODE_NAME, collective.RING_NAME, "rows"),
)


class Preflight:
    """One node's part; `run` returns its part in what goes on."""

    def __init__(self, watcher: Watcher, *, temp_dir: Path, ports: PortPlan) -> None:
        """Take the allocation, options, bulletin and ports of the agent."""
        self.watch = watcher
        self.job: Allocation = watcher.job
        self.board = watcher.bulletin
        self.temp_dir = temp_dir
        self.ports = ports
        self.variables = env.inherited()
        text = env.read("NEMO_RL_PREFLIGHT_SKIP") or ""
        self.skip = {name for name in text.split(",") if name}
        self.began = time.monotonic()
        self.child: Child | None = None
        (self.board.folder / FOLDER).mkdir(mode=0o700, exist_ok=True)

    def run(self) -> Allocation:
        """Check this node; return the allocation of those that train.

        On a node that is not among them `is_spare` is true. The first of them runs the
        driver, whether or not it is the first of the job.

        Raises:
            Refused: the recipe or the whole cluster is wrong: another attempt would
                end alike.
            NodesFailed: nodes failed and there are too few without them.
        """
        for name in self.skip - set(NAMES):
            self.watch.say(f"NEMO_RL_PREFLIGHT_SKIP: there is no check {name!r}")
        self.watch.state = "preflight"
        head = Head(self) if self.job.is_head else None
        # For the head a silent node is a finding here, and no reason to end.
        self.watch.patient = head is not None
        try:
            names = self._take_part(head).get("go", ())
        finally:
            self.watch.patient = False
            if head:
                head.clock.close()
            if self.child is not None:
                self.child.end()
        mine = self.job.node_name
        order = (*names, mine)  # A node that is left out comes last.
        return replace(
            self.job,
            node_names=order if mine not in names else tuple(names),
            num_nodes=len(names),
            node_index=order.index(mine),
        )

    def _take_part(self, head: Head | None) -> Mapping[str, Any]:
        self.publish(f"hello-{self.job.node_name}", {"at": time.time()})
        if head:
            self.publish("head", head.open())
        limit = self.watch.options.start_timeout
        facts = self._wait("head", limit, f"{self.job.node_names[0]} said nothing")
        if not facts:
            return {}
        delay = time.monotonic() - self.began, time.time() - facts["at"]
        self.child = self._start_collective(facts)
        running = Running(self._checks(head, facts, delay), self._context(facts))
        findings = self.watch.until(running.results)
        if self.child is not None:
            findings.append(self._collective(self.child))
        said = {
            "findings": [found.to_dict() for found in findings],
            "versions": system.installed(),
        }
        self.publish(f"node-{self.job.node_name}", said)
        if head:
            return head.decide(facts)
        limit += 2 * LIMIT_S
        plan = self._wait("ring", limit, "the head named no nodes")
        if self.job.node_name in plan.get("nodes", ()):
            self.join(plan)
        return self._wait("verdict", limit, "the head came to no verdict")

    # ---- files

    def publish(self, name: str, content: Any) -> None:
        """Write a file of the folder."""
        self.board.publish(f"{FOLDER}/{name}.json", content)

    def read(self, name: str) -> Any | None:
        """Return a file of the folder, None while there is none."""
        return self.board.read(f"{FOLDER}/{name}.json")

    def listed(self) -> set[str]:
        """Return the names of all files of the folder.

        To list a folder also makes a network file system forget which files it did
        not find before.
        """
        return {Path(name).stem for name in os.listdir(self.board.folder / FOLDER)}

    def age(self, name: str) -> float:
        """Return how many seconds after our own first word a file was written.

        Both times are the file server's.
        """
        files = (name, f"hello-{self.job.node_name}")
        theirs, ours = (
            os.stat(self.board.path(f"{FOLDER}/{file}.json")).st_mtime for file in files
        )
        return theirs - ours

    def _wait(self, name: str, limit_s: float, otherwise: str) -> Any:
        """Return a file's content; {} if the job has ended."""

        def look() -> Any | None:
            self.listed()
            return self.read(name) or ({} if self.watch.ended() else None)

        text = f"preflight: in {limit_s:.0f} s {otherwise}"
        return self.watch.until(look, limit_s, lambda: text)

    # ---- this node

    def _context(self, facts: Mapping[str, Any]) -> Context:
        names, index = self.job.node_names, self.job.node_index
        extra: dict[str, Any] = {
            "checkpoint_dir": facts.get("checkpoint_dir"),
            "ports": self.ports,
        }
        if len(names) > 1:
            extra["peers"] = (names[0], names[(index + 1) % len(names)])
            extra["head"] = facts or None
        return Context(
            variables=self.variables,
            run_dir=self.watch.options.run_dir,
            temp_root=self.watch.options.temp_root,
            job_id=self.job.job_id,
            node=self.job.node_name,
            gpus=self.job.num_gpus,
            memory_mb=self.job.memory_mb,
            recipe=Path(self.watch.options.recipe),
            overrides=(
                *self.watch.options.overrides,
                f"cluster.num_nodes={facts.get('needed', 1)}",
            ),
            extra=extra,
        )

    def _checks(
        self,
        head: Head | None,
        facts: Mapping[str, Any],
        delay: tuple[float, float],
    ) -> list[Check]:
        def shared(context: Context) -> Finding:
            return self._seen(facts, *delay)

        checks = [
            *NODE_CHECKS,
            Check("start", "a slow start is a slow image or file system", self._start),
            Check("sharedfs", "the nodes must see one another's files", shared, 20),
        ]
        if head:
            checks += [check for check in rows.CHECKS if check.name == "rows"]
        return chosen(checks, skip=self.skip & {check.name for check in checks})

    def _start(self, context: Context) -> Finding:
        began = handed(self.variables).get("srun")
        if began is None:
            return ok("not told when srun was called")
        passed = time.time() - began
        measured = f"{passed:.0f} s from srun to here"
        limit = f"{START_S:.0f} s"
        if passed > START_S:
            cure = "import the image once into a .sqsh or .sif file on fast storage"
            return bad(measured, limit, cure, verdict=WARN)
        return ok(measured, limit)

    def _seen(self, facts: Mapping[str, Any], waited: float, age: float) -> Finding:
        """How long the head's file was there before this node saw it.

        Args:
            facts: what the file says.
            waited: seconds this node looked for it.
            age: of the file when it was seen, by this node's clock.
        """
        delay = 0.0
        if not self.job.is_head:
            ahead, _ = network.skew(facts["ip"], facts["port"])
            delay = max(0.0, min(waited, age - ahead))
        text, limit = f"the head's file seen after {delay:.1f} s", f"{SEEN_S:.0f} s"
        if delay > SEEN_S:
            cure = "a stale cache: mount with a shorter actimeo, or another file system"
            return bad(text, limit, cure, verdict=WARN)
        return ok(text, limit)

    # ---- all-reduce

    @property
    def _gpus(self) -> bool:
        return self.job.num_gpus > 0

    @property
    def kind(self) -> str:
        """Library of the all-reduce."""
        return "nccl" if self._gpus else "gloo"

    def _start_collective(self, facts: Mapping[str, Any]) -> Child | None:
        if collective.NODE_NAME in self.skip:
            return None
        ranks = self.job.num_gpus or min(2, facts["workers"])
        alone = self.job.num_nodes == 1 or collective.RING_NAME in self.skip
        words = collective.command(
            self.temp_dir, ranks=ranks, gpus=self._gpus, alone=alone
        )
        log = self.board.path(f"{FOLDER}/allreduce-{self.job.node_name}.log")
        return Child("allreduce", words, self.variables | {"OMP_NUM_THREADS": "1"}, log)

    def _collective(self, child: Child) -> Finding:
        deadline = self.began + collective.NODE_S
        path = self.temp_dir / "local.json"

        def result() -> Finding | None:
            found = collective.read(path)
            if found is not None:
                return collective.judge_node(found, self.kind)
            if child.returncode is not None:
                cure = "see the log; is torch sound on this node?"
                return bad(f"{self.kind}: ended{child.tail()}", "the right sum", cure)
            if time.monotonic() > deadline:
                return collective.judge_late(self.temp_dir, self.kind)
            return None

        found = self.watch.until(result)
        passed = round(time.monotonic() - self.began, 2)
        return replace(
            found, name=collective.NODE_NAME, node=self.job.node_name, seconds=passed
        )

    def join(self, plan: Mapping[str, Any]) -> None:
        """Take part in the all-reduce among nodes and publish what came of it."""
        index = plan["nodes"].index(self.job.node_name)
        go = self.temp_dir / "go.json"
        partial = go.with_suffix(".tmp")
        partial.write_text(json.dumps({**plan, "index": index}), encoding="utf-8")
        partial.replace(go)
        path = self.temp_dir / "global.json"
        deadline = time.monotonic() + collective.FABRIC_S

        def result() -> list[Any] | None:
            found = collective.read(path)
            late = time.monotonic() > deadline
            return [] if found is None and late else found

        self.publish(f"ring-{self.job.node_name}", self.watch.until(result))
