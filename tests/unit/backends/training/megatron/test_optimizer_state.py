"""The record of one layout's optimizers, filled with the state of another's."""

from __future__ import annotations

import pytest

import tests.functional.ranks  # noqa: F401 - installs the shim
from nemo_rl.utils.exceptions import CheckpointError

from megatron.core.dist_checkpointing.mapping import (  # isort: skip
    LocalNonpersistentObject,
)
from nemo_rl.backends.training.megatron.optimizer_state import (  # isort: skip
    as_own,
    own_record,
)

TENSOR = LocalNonpersistentObject("a tensor of this rank")


def one(step=None, tensor=TENSOR, rate=0.1):
    group = {"lr": rate} | ({} if step is None else {"step": step})
    return {"optimizer": {"param_groups": [group]}, "param_state": {"w": tensor}}


def test_one_optimizer_is_read_as_two():
    record = own_record({0: one(), 1: one()})
    loaded = {
        **one(step=3, rate=0.5, tensor="gone"),
        0: {"param_state": {"w": "dense"}},
        1: {"param_state": {"w": "expert"}},
    }
    assert as_own(record, loaded) == {
        0: one(step=3, tensor="dense"),
        1: one(step=3, tensor="expert"),
    }


def test_two_optimizers_are_read_as_one():
    loaded = {
        0: {"optimizer": one(step=3)["optimizer"]},
        1: {"optimizer": one(step=3)["optimizer"]},
        "param_state": {"w": "all"},
    }
    assert as_own(own_record(one()), loaded) == one(step=3, tensor="all")


def test_a_rank_without_experts_does_not_speak_for_the_others():
    """Rank 0 wrote the record, and its optimizer of experts had no updates."""
    loaded = {0: one(step=3, tensor="dense"), 1: {"param_state": {"w": "expert"}}}
    found = as_own(own_record({0: one(), 1: one()}), loaded)
    assert found[1] == one(step=3, tensor="expert")


def test_a_step_of_its_own_beside_the_parameters():
    record = own_record({"state": {0: {"m": TENSOR}, "common_step": 0}})
    loaded = {"state": {0: {"m": "moments"}, "common_step": 4}}
    assert as_own(record, loaded)["state"] == {0: {"m": "moments"}, "common_step": 4}


def test_different_numbers_of_updates_are_refused():
    with pytest.raises(CheckpointError, match=r"made \[1.0, 2.0\] updates"):
        as_own(own_record({0: one(), 1: one()}), {0: one(step=1), 1: one(step=2)})


def test_before_the_first_update_there_is_no_step():
    assert as_own(own_record(one()), one(tensor="zeros")) == one(tensor="zeros")
