"""Tests of nemo_rl.distributed.topology; on a real Ray it is in tests/slurm."""

from __future__ import annotations

import pytest

from nemo_rl.distributed.topology import PLACE, SWITCH, labels, order


def test_bundles_are_counted_in_the_order_of_the_job():
    assert order([labels(2), labels(0), labels(10), labels(1)]) == [1, 3, 0, 2]


def test_nodes_below_one_switch_stay_together():
    nodes = [labels(0, "top.b"), labels(1, "top.a"), labels(2, "top.b"), labels(3)]
    assert order(nodes) == [0, 2, 1, 3]


def test_a_ray_without_our_labels_keeps_its_order():
    assert order([{}, labels(0)]) == [0, 1]
    assert order([{PLACE: "x"}, labels(0)]) == [0, 1]
    assert order([]) == []


@pytest.mark.parametrize("switch", ["top.leaf[1]", "s" * 100 + ".leaf", "-.-", "ä"])
def test_ray_accepts_the_labels(switch):
    utils = pytest.importorskip("ray._private.label_utils")
    found = labels(7, switch)
    assert found[PLACE] == "7"
    text = ",".join(f"{key}={value}" for key, value in found.items())
    assert utils.parse_node_labels_string(text) == found
    assert "leaf" in found.get(SWITCH, "leaf")
