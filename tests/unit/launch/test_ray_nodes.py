"""Tests of nemo_rl.launch.ray_nodes; a live head is asked in tests/slurm."""

from __future__ import annotations

import socket
import sys
import time

import pytest

from nemo_rl.launch.ray_nodes import alive_addresses
from nemo_rl.utils.exceptions import ConfigurationError


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'nemo_rl\[ray\]'"):
        alive_addresses("127.0.0.1:1")


def test_a_port_on_which_nobody_listens_is_no_head_and_costs_no_time():
    pytest.importorskip("ray")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        began = time.monotonic()
        assert alive_addresses(f"127.0.0.1:{taken.getsockname()[1]}") is None
    assert time.monotonic() - began < 20
