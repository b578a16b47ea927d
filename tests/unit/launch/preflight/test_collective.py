"""Tests of nemo_rl.launch.preflight.collective and of the program allreduce.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time

import pytest

from nemo_rl.launch.preflight import collective

NODES = ("n0", "n1", "n2", "n3")


def ring(speeds):
    return {
        node: [{"seconds": 0.1, "gbps": 1.0, "link_gbps": speed}]
        for node, speed in zip(NODES, speeds, strict=True)
    }


def verdicts(found):
    return [one.verdict for one in found.values()]


def test_an_outlier_has_two_slow_links():
    # Entry i is the link into node i: node 2 is slow in and out.
    found = collective.judge_ring(NODES, ring([9, 10, 1, 1]), "nccl")
    assert verdicts(found) == ["ok", "ok", "fail", "ok"]
    assert "1.00 GB/s in, 1.00 out, median 5.00" in found["n2"].measured
    found = collective.judge_ring(NODES, ring([9, 10, 1, 1]), "gloo")
    assert verdicts(found)[2] == "warn"
    found = collective.judge_ring(NODES, ring([9, 10, 1, 8]), "nccl")
    assert verdicts(found) == ["ok"] * 4


def test_who_does_not_come_is_named():
    found = ring([1, 1, 1, 1])
    found["n0"] = [{"error": "did not come: n3", "missing": ["n3"]}]
    judged = collective.judge_ring(NODES, found, "nccl")
    assert verdicts(judged) == ["ok", "ok", "ok", "fail"]
    del found["n1"]
    assert verdicts(collective.judge_ring(NODES, found, "nccl"))[1] == "fail"


def test_one_node():
    fine = {"seconds": 0.002, "gbps": 1.0}
    assert "2 ranks: 2.0 ms" in collective.judge_node([fine, fine], "gloo").measured
    wrong = collective.judge_node([fine, {"error": "the sum is 2, not 3"}], "nccl")
    assert (wrong.verdict, wrong.measured) == ("fail", "nccl: the sum is 2, not 3")


def test_a_slow_import_is_no_nodes_fault(tmp_path):
    assert collective.judge_late(tmp_path, "nccl").verdict == "warn"
    (tmp_path / "local.began").touch()
    assert collective.judge_late(tmp_path, "nccl").verdict == "fail"


@pytest.mark.timeout(120)
def test_three_nodes_reduce_and_one_that_stays_away_is_named(tmp_path):
    """Three "nodes" on this machine, first together, then without the last."""
    names = NODES[:3]
    variables = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    processes = []
    for name in names:
        (tmp_path / name).mkdir()
        words = collective.command(tmp_path / name, ranks=1, gpus=False, alone=False)
        processes.append(subprocess.Popen(words, env=variables))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    plan = {"nodes": names, "address": "127.0.0.1", "port": port}

    def awaited(name, file):
        deadline = time.monotonic() + 60
        while (found := collective.read(tmp_path / name / file)) is None:
            assert time.monotonic() < deadline, f"{name}: no {file}"
            time.sleep(0.1)
        return found

    for name in names:
        assert (
            collective.judge_node(awaited(name, "local.json"), "gloo").verdict == "ok"
        )
    for index, name in enumerate(names[:2]):
        (tmp_path / name / "go.tmp").write_text(json.dumps({**plan, "index": index}))
        (tmp_path / name / "go.tmp").replace(tmp_path / name / "go.json")
    began = time.monotonic()
    found = {name: awaited(name, "global.json") for name in names[:2]}
    assert time.monotonic() - began < collective.FABRIC_S
    judged = collective.judge_ring(names, found | {names[2]: []}, "gloo")
    assert verdicts(judged) == ["ok", "ok", "fail"]
    assert found["n0"][0]["missing"] == ["n2"]
    processes[2].kill()
    assert [process.wait(20) for process in processes[:2]] == [0, 0]
