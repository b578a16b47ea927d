"""Export to Hugging Face from every layout, before and after training."""

from __future__ import annotations

import json

import pytest
import torch

from tests.fakes import models
from tests.functional.ranks import run_ranks
from tests.functional.sessions import LAYOUTS, Session, merged


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    found = {}
    for family, tied in [("qwen2", True), ("qwen3", False)]:
        folder = models.save(root / family, family, tied=tied, layers=2, hidden=64)
        (folder / "tokenizer_config.json").write_text('{"model_max_length": 64}')
        found[family] = folder
    return found


def _export(rank, folder, layout, target, train):
    session = Session(rank, folder, layout)
    if train:
        session.step(0)
    names = list(session.weights())
    session.backend.save_hf(target)
    return names, session.scores()


def state_of(folder):
    """Stored tensors and the model that transformers makes of them."""
    import transformers

    from nemo_rl.converters.formats.hf import HfWeights

    with HfWeights(folder) as weights:
        stored = {name: weights.tensor(name) for name in weights.names()}
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return stored, model


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_export_before_training_is_the_source_bit_for_bit(
    sources, tmp_path, family, layout
):
    source = sources[family]
    results = run_ranks(_export, LAYOUTS[layout][0], source, layout, tmp_path, False)
    want, _ = state_of(source)
    got, _ = state_of(tmp_path)
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype == value.dtype
        assert torch.equal(got[name], value), name
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert (tmp_path / "tokenizer_config.json").exists()
    leftovers = [p.name for p in tmp_path.iterdir() if p.name.startswith("stage")]
    assert leftovers == []
    if layout == "pp2":
        # Each stage yields its own layers, the first alone a tied embedding.
        first, second = (set(names) for names, _ in results)
        assert not first & second
        assert "model.embed_tokens.weight" in first
        assert "model.norm.weight" in second
    else:
        assert all(set(names) == set(want) for names, _ in results)


@pytest.mark.parametrize("layout", ["one", "tp2", "pp2"])
def test_export_after_training_scores_as_the_engine_does(sources, tmp_path, layout):
    from tests.functional.engines import grpo_batch

    results = run_ranks(
        _export, LAYOUTS[layout][0], sources["qwen2"], layout, tmp_path, True
    )
    scores = next(s for _, s in results if s is not None)
    before, _ = state_of(sources["qwen2"])
    stored, model = state_of(tmp_path)
    assert not any(torch.equal(before[name], stored[name]) for name in stored)
    batch = grpo_batch(seed=77)
    ids = batch["input_ids"]
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits, -1)
    want = logprobs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    mask = batch["token_mask"]
    want = torch.nn.functional.pad(want, (1, 0)) * mask
    torch.testing.assert_close(scores, want, atol=1e-5, rtol=1e-5)


def _yielded(rank, folder):
    session = Session(rank, folder, "tp2")
    session.step(0)
    return session.weights()


def test_every_tensor_parallel_rank_receives_the_full_tensors(sources):
    one, two = run_ranks(_yielded, 2, sources["qwen3"])
    assert one.keys() == two.keys() == merged([one, two]).keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name
    assert one["lm_head.weight"].shape == (131, 64)
