"""What the head makes of all nodes' findings: who trains, who is left out, or why not.

Pure, but for the files it writes for people and for `slurm/job.sh`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nemo_rl.launch.allocation import Allocation
from nemo_rl.launch.bulletin import Bulletin
from nemo_rl.launch.failure import Failure
from nemo_rl.launch.hostlist import compress
from nemo_rl.launch.preflight.checks import FAIL, USER, WARN, Finding, bad
from nemo_rl.launch.preflight.collective import RING_NAME
from nemo_rl.launch.watch import NodesFailed, Refused

EXCLUDE = "exclude"
"""File of the attempt: nodes that `slurm/job.sh` asks SLURM to leave out."""
REPORT = "preflight.json"
MANY = 64
"""Above this many nodes the report leaves out what is in order."""


@dataclass
class Verdict:
    """The findings of all nodes and what follows."""

    names: tuple[str, ...]
    """All nodes."""
    needed: int
    """How many train."""
    findings: list[Finding] = field(default_factory=list)
    """Of all nodes."""
    go: tuple[str, ...] = ()
    """Those that train, in order."""

    @property
    def failed(self) -> dict[str, list[Finding]]:
        """Node -> its failures, for nodes that have any that are their own."""
        found: dict[str, list[Finding]] = {}
        for one in self.findings:
            if one.verdict == FAIL and one.blame != USER:
                found.setdefault(one.node, []).append(one)
        return found

    @property
    def enough(self) -> bool:
        """Whether training can go on here."""
        mistakes = any(f.verdict == FAIL and f.blame == USER for f in self.findings)
        return len(self.go) == self.needed and not mistakes

    def choose(self) -> None:
        """Take the first healthy nodes."""
        failed = self.failed
        self.go = tuple(n for n in self.names if n not in failed)[: self.needed]

    def add(self, found: Mapping[str, Finding]) -> None:
        """Add a finding of each node that was to train, and choose again."""
        self.findings += [
            replace(one, name=RING_NAME, node=node) for node, one in found.items()
        ]
        self.choose()

    def write(self, board: Bulletin, *, seconds: float, last: Any) -> None:
        """Write the report; and the nodes to exclude, if the job cannot go on."""
        few = len(self.names) <= MANY
        shown = [f for f in self.findings if few or f.verdict in (FAIL, WARN)]
        board.publish(
            REPORT,
            {
                "seconds": round(seconds, 2),
                "nodes": list(self.names),
                "needed": self.needed,
                "train": list(self.go) if self.enough else [],
                "failed": sorted(self.failed),
                "findings": [found.to_dict() for found in shown],
            },
        )
        if self.failed and not self.enough and self._everywhere(last) is None:
            text = compress(sorted(self.failed))
            board.path(EXCLUDE).write_text(text + "\n", encoding="utf-8")

    def lines(self, seconds: float) -> list[str]:
        """Return what the job's log shows: what is not in order, then the result."""
        groups: dict[tuple[str, str], list[str]] = {}
        for one in self.findings:
            if one.verdict in (FAIL, WARN):
                groups.setdefault((one.verdict, one.line()), []).append(one.node)
        found = [
            f"preflight {verdict} on {compress(nodes)}: {line}"
            for (verdict, line), nodes in sorted(groups.items())
        ]
        healthy = len(self.names) - len(self.failed)
        names = len({one.name for one in self.findings})
        text = (
            f"preflight: {healthy} of {len(self.names)} nodes pass {names} checks "
            f"in {seconds:.1f} s"
        )
        spare = [n for n in self.names if n not in self.go and n not in self.failed]
        if self.enough and (spare or self.failed):
            text += f"; training on {compress(self.go)}"
            text += f", not needed: {compress(spare)}" if spare else ""
        return [*found, text]

    def enforce(self, last: Any) -> None:
        """Raise if the job cannot go on.

        Raises:
            Refused: a mistake of the user's, or something that all nodes lack.
            NodesFailed: another attempt, without the nodes that failed, may do.
        """
        mistakes = [f for f in self.findings if f.verdict == FAIL and f.blame == USER]
        if mistakes:
            raise Refused(f"preflight: {mistakes[0].line()}", 2)
        if self.enough:
            return
        everywhere = self._everywhere(last)
        if everywhere:
            raise Refused(
                f"preflight: every node fails {everywhere}: the cluster or the site is "
                "set up so, and other nodes would not help. The cure is above; "
                f"NEMO_RL_PREFLIGHT_SKIP={everywhere} goes on regardless.",
                2,
            )
        failed = self.failed
        named = "; ".join(
            f"node {node} failed its checks: {', '.join(f.line() for f in found)}"
            for node, found in list(failed.items())[:5]
        )
        error = NodesFailed(named or "the all-reduce failed on no node in particular")
        for node, found in list(failed.items())[:1]:
            error.failure = Failure(
                node=node,
                process="checks",
                message=f"{named}\nWhat to do: {found[0].cure}",
                raised=True,
                cause=f"{found[0].name}: {found[0].measured}",
            )
        raise error

    def _everywhere(self, last: Any) -> str | None:
        """Return the check that all nodes of this attempt, or of two, fail."""
        counts = Counter(f.name for found in self.failed.values() for f in found)
        nodes = set(self.failed)
        if len(self.names) == 1 and last and len(last["nodes"]) == 1:
            before = {f["name"] for f in last["findings"] if f["verdict"] == FAIL}
            both = [name for name in counts if name in before]
            return both[0] if both and set(last["failed"]) != nodes else None
        for name, count in counts.items():
            if count == len(self.names) > 1:
                return name
        return None


def decide(
    allocation: Allocation, said: Mapping[str, Mapping[str, Any]], *, needed: int
) -> Verdict:
    """Judge what all nodes found.

    Args:
        allocation: the job's nodes.
        said: node -> {"findings": [...], "versions": {...}}.
        needed: how many nodes train.
    """
    verdict = Verdict(allocation.node_names, needed)
    for name in allocation.node_names:
        verdict.findings += [Finding(**one) for one in said[name]["findings"]]
    verdict.findings += _unlike(allocation.node_names, said)
    verdict.choose()
    return verdict


def _unlike(
    names: Sequence[str], said: Mapping[str, Mapping[str, Any]]
) -> list[Finding]:
    """Find nodes whose Python or libraries are not those of most."""
    found = []
    known = {n: said[n]["versions"] for n in names if said[n].get("versions")}
    for library in sorted({key for one in known.values() for key in one}):
        counts = Counter(one.get(library, "-") for one in known.values())
        common = counts.most_common(1)[0][0]
        for name, one in known.items():
            if one.get(library, "-") != common:
                cure = "the same image or environment on all nodes (NEMO_RL_PYTHON)"
                text = f"{library} {one.get(library, '-')}"
                unlike = bad(text, f"{library} {common}, as on most nodes", cure)
                found.append(replace(unlike, name="alike", node=name))
    return found
