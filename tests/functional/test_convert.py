"""Converted checkpoints meet real Megatron: it reads ours, and ours reads its.

Covers fp32 on CPU, TP, PP and EP; that the model is the right one follows from
test_families.py, which compares the same weights with Hugging Face's logits.
"""

from __future__ import annotations

import pytest
import torch

from nemo_rl.converters.bridge import find_weights
from nemo_rl.converters.convert import convert, open_side
from nemo_rl.converters.formats.dist_checkpoint import read_index
from tests.fakes import models
from tests.functional.ranks import run_ranks
from tests.functional.sessions import LAYOUTS, Session, merged

WIDE = {
    "one": (1, 1, 1),
    "tp2": (2, 2, 1),
    "pp2": (2, 1, 2),
    "tp2pp2": (4, 2, 2),
    "ep2": (2, 1, 1),
    "ep2pp2": (4, 1, 2),
}
WITH_EXPERTS = ("moe", "mixtral", "deepseek")


def widest(family):
    experts = any(name in family for name in WITH_EXPERTS)
    return "ep2pp2" if experts else "tp2pp2"


CASES = [
    *[(family, widest(family)) for family in models.EVERY_FAMILY],
    *[("qwen2", layout) for layout in ("one", "tp2", "pp2")],
    ("qwen3_moe", "ep2"),
]
OVER_LAYOUTS = pytest.mark.parametrize(("family", "layout"), CASES)


def session(rank, folder, layout):
    LAYOUTS.update(WIDE)
    experts = {"expert_model_parallel_size": 2 if "ep2" in layout else 1}
    return Session(rank, folder, layout, megatron_cfg=experts)


def saved(folder, family, seed=0):
    tied = family not in ("qwen3", "mixtral")
    return models.save(folder, family, seed=seed, tied=tied, layers=2, hidden=32)


def tensors(folder):
    side, _ = open_side(folder)
    return {name: side.weights.tensor(name) for name in side.weights.names()}


def assert_equal(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert value.dtype == got[name].dtype and torch.equal(value, got[name]), name


def _loaded(rank, folder, layout, weights):
    """A model of other weights, then those of a converted checkpoint."""
    from nemo_rl.backends.training.megatron import checkpoint

    one = session(rank, folder, layout)
    state = checkpoint.read_weights(weights, one.backend.model, None)
    one.backend.model.load_state_dict(state["model"])
    return one.weights()


@OVER_LAYOUTS
def test_convert_to_what_megatron_loads_and_back(tmp_path, family, layout):
    source = saved(tmp_path / "source", family, seed=1)
    other = saved(tmp_path / "other", family, seed=2)
    convert(source, tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "back")
    want = tensors(source)
    assert_equal(tensors(tmp_path / "back"), want)
    world = WIDE[layout][0]
    parts = run_ranks(_loaded, world, other, layout, tmp_path / "megatron")
    assert_equal(merged(parts), want)


def _trained(rank, folder, layout, path, exported):
    one = session(rank, folder, layout)
    one.step(0)
    one.save(path)
    exported.mkdir(exist_ok=True)
    one.backend.save_hf(exported)


def names_in(checkpoint):
    index = read_index(find_weights(checkpoint))
    found = set(index.state_dict_metadata)
    return {n for n in found if not n.startswith("optimizer") and "common" not in n}


@OVER_LAYOUTS
def test_convert_what_training_wrote_to_what_it_exports(tmp_path, family, layout):
    """The vocabulary of 131 is padded under TP=2; the padding must be gone.

    A conversion writes the same entries as training does, so that either side reads
    the other's checkpoints.
    """
    source = saved(tmp_path / "source", family)
    path, exported = tmp_path / "checkpoint", tmp_path / "exported"
    run_ranks(_trained, WIDE[layout][0], source, layout, path, exported)
    convert(path, tmp_path / "converted")
    assert_equal(tensors(tmp_path / "converted"), tensors(exported))
    convert(exported, tmp_path / "again")
    assert names_in(tmp_path / "again") == names_in(path)


@pytest.mark.parametrize(
    ("family", "layout"), [("qwen2", "tp2pp2"), ("deepseek_v3", "ep2pp2")]
)
def test_convert_gives_one_model_whatever_the_layout_of_training(
    tmp_path, family, layout
):
    source = saved(tmp_path / "source", family)
    for place in (layout, "one"):
        path, exported = tmp_path / place, tmp_path / f"{place}-hf"
        run_ranks(_trained, WIDE[place][0], source, place, path, exported)
        convert(path, tmp_path / f"{place}-converted")
    got, want = (tensors(tmp_path / f"{p}-converted") for p in (layout, "one"))
    before = tensors(source)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-5, msg=name)
        frozen = name.endswith("e_score_correction_bias")
        assert frozen or not torch.equal(value, before[name]), name
