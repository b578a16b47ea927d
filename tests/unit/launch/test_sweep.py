"""Tests of nemo_rl.launch.sweep."""

from __future__ import annotations

import pytest

from nemo_rl.launch.sweep import (
    combinations,
    fits_an_array,
    parse_nodes,
    split_values,
    table,
)
from nemo_rl.utils.exceptions import LaunchError


def test_nodes_and_spares():
    assert parse_nodes("16") == parse_nodes(16) == ["cluster.num_nodes=16"]
    assert parse_nodes("16+2") == ["cluster.num_nodes=16", "cluster.spare_nodes=2"]


@pytest.mark.parametrize("text", ["0", "+2", "16+", "-1", "two", "4 + 1"])
def test_other_numbers_of_nodes_are_refused(text):
    with pytest.raises(LaunchError, match=r"--nodes .*: expected a number of nodes"):
        parse_nodes(text)


def test_commas_inside_brackets_and_quotes_do_not_cut():
    assert split_values("1e-6, 2e-6") == ["1e-6", "2e-6"]
    assert split_values("[0.9,0.99],[0.8,1]") == ["[0.9,0.99]", "[0.8,1]"]
    assert split_values("{a: [1,2]},'x,y'") == ["{a: [1,2]}", "'x,y'"]


def test_combinations_are_the_product():
    assert combinations(["a=1,2", "b=x,y"]) == (
        ("a=1", "b=x"),
        ("a=1", "b=y"),
        ("a=2", "b=x"),
        ("a=2", "b=y"),
    )
    assert combinations([]) == ()


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (["a"], "expected key=a,b,c"),
        (["=1,2"], "expected key=a,b,c"),
        (["a=1,,2"], "expected key=a,b,c"),
        (["a=1", "a=2"], "names a twice"),
    ],
)
def test_a_sweep_that_is_none(sweep, message):
    with pytest.raises(LaunchError, match=message):
        combinations(sweep)


def test_sizes_of_the_job_do_not_fit_an_array():
    assert fits_an_array([["grpo.seed=1"]])
    assert not fits_an_array([["grpo.seed=1", "cluster.num_nodes=2"]])


def test_table():
    groups = combinations(["grpo.seed=1,20"])
    assert table(groups, ["7_0", "7_1"]) == "run  grpo.seed\n7_0  1\n7_1  20"
