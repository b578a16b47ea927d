"""Tests of nemo_rl.launch.hostlist; scontrol's own view is in tests/slurm."""

from __future__ import annotations

import time

import pytest

from nemo_rl.launch.hostlist import compress, expand
from nemo_rl.utils.exceptions import LaunchError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node0", ["node0"]),
        ("gpu[08-10],login1", ["gpu08", "gpu09", "gpu10", "login1"]),
        ("a[1,3-4]", ["a1", "a3", "a4"]),
        ("r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]),
        ("c[1-2]-ib", ["c1-ib", "c2-ib"]),
        ("x[098-101]", ["x098", "x099", "x100", "x101"]),
    ],
)
def test_expand(text, names):
    assert expand(text) == names


@pytest.mark.parametrize("text", ["", "a,,b", "a[1-", "a[x]", "a[3-1]", "a]1["])
def test_expand_refuses_what_is_no_node_list(text):
    with pytest.raises(LaunchError, match="is not a list of nodes"):
        expand(text)


def test_compress_is_the_inverse_of_expand():
    names = [f"gpu{i:04d}" for i in range(1, 4097)]
    assert compress(names) == "gpu[0001-4096]"
    for text in ("node0", "gpu[08-10],login", "a[1,3-4],b7"):
        assert compress(expand(text)) == text


ODD = range(1, 8192, 2)


@pytest.mark.parametrize(
    "text",
    [
        "gpu[0001-4096]",
        f"gpu[{','.join(f'{i:04d}' for i in ODD)}]",
        ",".join(f"gpu{i:04d}" for i in ODD),
        "r[01-64]n[01-64]",
    ],
    ids=["one range", "no ranges", "no brackets", "two dimensions"],
)
def test_4096_nodes_take_less_than_50_ms(text):
    took = []
    for _ in range(3):  # Of this process alone: others run here too.
        began = time.process_time()
        names = expand(text)
        took.append(time.process_time() - began)
    assert len(names) == len(set(names)) == 4096
    print(f"expanded in {min(took) * 1e3:.1f} ms")
    assert min(took) < 0.05
