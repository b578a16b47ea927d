"""Tests of nemo_rl.launch.ray_settings."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from nemo_rl.launch.ray_settings import ALWAYS, MANY, THREADS, VERY_MANY, settings


def named(nodes, head=False, environ=None):
    return settings(environ or {}, num_nodes=nodes, num_cpus=96, head=head)


def test_they_grow_with_the_number_of_nodes():
    assert named(1) == named(64, head=True) == ALWAYS
    assert named(65) == ALWAYS | MANY
    assert named(513) == ALWAYS | MANY | VERY_MANY
    assert named(65, head=True) == ALWAYS | MANY | dict.fromkeys(THREADS, "48")


def test_threads_stay_within_bounds():
    few = settings({}, num_nodes=100, num_cpus=2, head=True)
    many = settings({}, num_nodes=100, num_cpus=512, head=True)
    assert {few[name] for name in THREADS} == {"4"}
    assert {many[name] for name in THREADS} == {"64"}


def test_what_the_user_has_set_stays():
    mine = {"RAY_num_workers_soft_limit": "200"}
    assert set(named(65, environ=mine)) == set(ALWAYS | MANY) - set(mine)


def test_ray_knows_every_name():
    spec = importlib.util.find_spec("ray")
    if spec is None:
        pytest.skip("Ray is not installed")
    daemons = Path(spec.origin).parent / "core" / "src" / "ray" / "gcs" / "gcs_server"
    text = daemons.read_bytes()
    names = [*ALWAYS, *MANY, *VERY_MANY, *THREADS]
    assert [name for name in names if name.encode() not in text] == []
