"""Tests of nemo_rl.launch.preflight.verdict: who trains, who is left out."""

from __future__ import annotations

import json

import pytest

from nemo_rl.launch.allocation import Allocation
from nemo_rl.launch.bulletin import Bulletin
from nemo_rl.launch.preflight.checks import USER, Finding
from nemo_rl.launch.preflight.verdict import decide
from nemo_rl.launch.watch import NodesFailed, Refused


def job(nodes):
    return Allocation(
        job_id=1,
        node_index=0,
        num_nodes=len(nodes),
        node_names=tuple(nodes),
        num_cpus=1,
        num_gpus=0,
        memory_mb=1,
    )


def said(nodes, failing=(), name="shm", **changes):
    return {
        node: {
            "findings": [
                Finding(
                    name=name,
                    node=node,
                    verdict="fail" if node in failing else "ok",
                    measured=f"{len(node)} MiB",
                    limit="80 MiB",
                    cure="empty it" if node in failing else "",
                    **changes,
                ).to_dict()
            ],
            "versions": {"python": "3.11.7"},
        }
        for node in nodes
    }


def judged(nodes, failing=(), needed=None, **changes):
    return decide(
        job(nodes), said(nodes, failing, **changes), needed=needed or len(nodes)
    )


def test_all_pass():
    verdict = judged(["n0", "n1", "n2"])
    assert verdict.enough and verdict.go == ("n0", "n1", "n2")
    verdict.enforce(None)
    assert verdict.lines(2) == ["preflight: 3 of 3 nodes pass 1 checks in 2.0 s"]


def test_one_fails_and_is_excluded(tmp_path):
    verdict = judged(["n0", "n1", "n2"], ["n1"])
    board = Bulletin(tmp_path / "7.0", "n0")
    verdict.write(board, seconds=1.5, last=None)
    assert (tmp_path / "7.0" / "exclude").read_text() == "n1\n"
    report = json.loads((tmp_path / "7.0" / "preflight.json").read_text())
    assert (report["failed"], report["train"]) == (["n1"], [])
    assert verdict.lines(1)[0] == (
        "preflight fail on n1: shm: 2 MiB (limit: 80 MiB); empty it"
    )
    with pytest.raises(NodesFailed, match="node n1 failed its checks: shm: 2 MiB") as e:
        verdict.enforce(None)
    assert e.value.code == 75


def test_a_spare_takes_its_place(tmp_path):
    verdict = judged(["n0", "n1", "n2", "n3"], ["n1"], needed=2)
    assert verdict.enough and verdict.go == ("n0", "n2")
    verdict.enforce(None)
    verdict.write(Bulletin(tmp_path / "7.0", "n0"), seconds=1, last=None)
    assert not (tmp_path / "7.0" / "exclude").exists()
    assert verdict.lines(1)[-1].endswith("training on n[0,2], not needed: n3")


def test_a_spare_takes_the_place_of_the_first_node():
    verdict = judged(["n0", "n1", "n2"], ["n0"], needed=2)
    assert verdict.enough and verdict.go == ("n1", "n2")
    verdict.enforce(None)
    verdict = judged(["n0", "n1"], ["n0"], needed=2)
    assert not verdict.enough
    with pytest.raises(NodesFailed, match="node n0"):
        verdict.enforce(None)


def test_what_all_nodes_lack_is_no_nodes_fault(tmp_path):
    verdict = judged(["n0", "n1"], ["n0", "n1"])
    verdict.write(Bulletin(tmp_path / "7.0", "n0"), seconds=1, last=None)
    assert not (tmp_path / "7.0" / "exclude").exists()
    with pytest.raises(Refused, match="every node fails shm") as error:
        verdict.enforce(None)
    assert error.value.code == 2


def test_of_a_single_node_the_attempt_before_tells(tmp_path):
    first = judged(["n0"], ["n0"])
    with pytest.raises(NodesFailed):
        first.enforce(None)
    board = Bulletin(tmp_path / "7.0", "n0")
    first.write(board, seconds=1, last=None)
    last = board.read("preflight.json")
    with pytest.raises(Refused, match="every node fails shm"):
        judged(["n5"], ["n5"]).enforce(last)
    with pytest.raises(NodesFailed):
        judged(["n5"], ["n5"], name="gpus").enforce(last)


def test_a_users_mistake_ends_the_job():
    verdict = judged(["n0", "n1"], ["n0"], name="rows", blame=USER)
    assert not verdict.enough and not verdict.failed
    with pytest.raises(Refused, match="rows: 2 MiB") as error:
        verdict.enforce(None)
    assert error.value.code == 2


def test_other_libraries_on_one_node():
    found = said(["n0", "n1", "n2"])
    found["n2"]["versions"] = {"python": "3.12.1"}
    verdict = decide(job(["n0", "n1", "n2"]), found, needed=3)
    (wrong,) = verdict.failed["n2"]
    assert (wrong.name, wrong.measured) == ("alike", "python 3.12.1")
    assert wrong.limit == "python 3.11.7, as on most nodes"


def test_one_line_for_many_nodes():
    nodes = [f"gpu{i:04d}" for i in range(1, 4097)]
    verdict = judged(nodes, nodes[7:9])
    lines = verdict.lines(3)
    assert len(lines) == 2 and "fail on gpu[0008-0009]:" in lines[0]
