"""Tests of nemo_rl.launch.ray_nodes; a live head is asked in tests/slurm."""

from __future__ import annotations

import sys

import pytest

from nemo_rl.launch.ray_nodes import alive_addresses
from nemo_rl.utils.exceptions import ConfigurationError


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'nemo_rl\[ray\]'"):
        alive_addresses("127.0.0.1:1")
