"""Tests of nemo_rl.launch.request."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_rl.launch.request import as_texts, prepare
from nemo_rl.utils.exceptions import ConfigurationError, LaunchError

CPU = "grpo_smollm2_cpu"


def test_mappings_become_texts():
    assert as_texts(["a=1"]) == ["a=1"]
    values = {"a.b": 3, "c": "x", "d": None, "e": [1, 2], "f": True, "g": "1"}
    assert as_texts(values) == ["a.b=3", "c=x", "d=null", "e=[1, 2]", "f=true", "g='1'"]


def test_nodes_and_time_are_overrides():
    made = prepare(CPU, nodes="1+2", time="00:10:00", overrides={"grpo.seed": 3})
    cluster = made.config.cluster
    assert (cluster.num_nodes, cluster.spare_nodes, cluster.time) == (1, 2, "00:10:00")
    assert made.first.overrides == made.overrides
    assert made.overrides[0] == "grpo.seed=3"


def test_an_array_keeps_the_common_overrides_apart():
    made = prepare(CPU, overrides=["grpo.seed=3"], sweep={"grpo.max_num_steps": [1, 2]})
    (spec,) = made.specs
    assert spec.overrides == ("grpo.seed=3",)
    assert spec.sweep == (("grpo.max_num_steps=1",), ("grpo.max_num_steps=2",))


def test_every_combination_is_checked():
    with pytest.raises(ConfigurationError, match=r"grpo\.max_num_steps"):
        prepare(CPU, sweep=["grpo.max_num_steps=1,many"])


def test_links_are_only_those_of_a_chain():
    assert prepare(CPU).first.link is None
    assert prepare(CPU, chain=2).first.link == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chain": -1}, "expected how many jobs follow"),
        ({"chain": 1, "sweep": ["grpo.seed=1,2"]}, "--sweep and --chain do not go"),
        ({"run_dir": Path("x"), "sweep": ["grpo.seed=1,2"]}, "--sweep and --run-dir"),
        ({"chain": 1, "site": "local"}, "site local has none"),
        ({"nodes": "x"}, "--nodes x: expected a number"),
    ],
)
def test_what_does_not_go_together(arguments, message):
    with pytest.raises(LaunchError, match=message):
        prepare(CPU, **arguments)


@pytest.mark.parametrize(
    "asked",
    [
        {"overrides": ["data.dataset_kwargs.token=s3cret"]},
        {"overrides": {"data.dataset_kwargs": {"api_key": "s3cret"}}},
        {"sweep": ["data.dataset_kwargs.token=s3cret,s4"]},
    ],
)
def test_a_secret_is_not_submitted(asked):
    with pytest.raises(LaunchError, match=r"data.dataset_kwargs\S*: a secret") as found:
        prepare(CPU, **asked)
    assert "s3cret" not in str(found.value)
    if "overrides" in asked:
        prepare(CPU, site="local", **asked)
