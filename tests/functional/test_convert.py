"""Converted checkpoints meet real Megatron: it reads ours, and ours reads its.

Covers fp32 on CPU, TP and PP; that the model is the right one follows from
test_parity.py, which compares the same weights with Hugging Face's logits.
"""

from __future__ import annotations

import pytest
import torch

from nemo_rl.converters.convert import compare, convert, open_side
from tests.fakes import models
from tests.functional.ranks import run_ranks
from tests.functional.sessions import LAYOUTS, Session, merged

WIDE = {"one": (1, 1, 1), "tp2": (2, 2, 1), "pp2": (2, 1, 2), "tp2pp2": (4, 2, 2)}


def _loaded(rank, folder, layout, weights):
    """A model of other weights, then those of a converted checkpoint."""
    from nemo_rl.backends.training.megatron import checkpoint

    LAYOUTS.update(WIDE)
    session = Session(rank, folder, layout)
    state = checkpoint._read_weights(weights, session.backend.model, None)
    session.backend.model.load_state_dict(state["model"])
    return session.weights()


@pytest.mark.parametrize("family", models.FAMILIES)
@pytest.mark.parametrize("layout", WIDE)
def test_convert_to_what_megatron_loads_under_any_layout(tmp_path, family, layout):
    tied = family != "qwen3"
    shape = {"tied": tied, "layers": 2, "hidden": 32}
    source = models.save(tmp_path / "source", family, seed=1, **shape)
    other = models.save(tmp_path / "other", family, seed=2, **shape)
    convert(source, tmp_path / "megatron")
    world = WIDE[layout][0]
    parts = run_ranks(_loaded, world, other, layout, tmp_path / "megatron")
    side, _ = open_side(source)
    got = merged(parts)
    assert len(got) == len([n for n in side.weights.names() if n in got]) > 10
    for name, value in got.items():
        assert torch.equal(value, side.weights.tensor(name)), name


def _trained(rank, folder, layout, path, exported):
    LAYOUTS.update(WIDE)
    session = Session(rank, folder, layout)
    session.step(0)
    session.save(path)
    exported.mkdir(exist_ok=True)
    session.backend.save_hf(exported)


@pytest.mark.parametrize("layout", WIDE)
def test_convert_what_training_wrote_to_what_it_exports(tmp_path, layout):
    """The vocabulary of 131 is padded under TP=2; the padding must be gone."""
    source = models.save(tmp_path / "source", "qwen2", tied=True, layers=2, hidden=32)
    path, exported = tmp_path / "checkpoint", tmp_path / "exported"
    run_ranks(_trained, WIDE[layout][0], source, layout, path, exported)
    convert(path, tmp_path / "converted", config=source)
    one, spec = open_side(tmp_path / "converted")
    two, _ = open_side(exported)
    compare(one, two, spec)
