"""A Megatron model from a Hugging Face folder: what is refused, and rotary scaling.

Parity of plain models over layouts is tests/functional/test_parity.py.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models
from tests.functional.engines import engine, policy_config
from tests.functional.ranks import run_ranks


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    return models.save(folder, "llama", tied=True, layers=2, hidden=32)


@pytest.fixture
def broken(source, tmp_path):
    """A copy of the model whose tensors may be changed: ``broken(change)``."""

    def make(change):
        folder = shutil.copytree(source, tmp_path / "broken")
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


def _refusal(rank, folder, tp, pp):
    try:
        engine(rank, folder, policy_config(tp, pp))
    except ConfigurationError as error:
        return str(error)
    return None


NORM = "model.layers.1.input_layernorm.weight"
PROJ = "model.layers.0.self_attn.o_proj.weight"


def test_missing_and_surplus_tensors_are_all_listed(broken):
    def change(tensors):
        del tensors[NORM]
        tensors["model.layers.1.self_attn.q_proj.bias"] = torch.ones(32)
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.ones(2)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
        tensors["lm_head.weight"] = torch.ones(131, 32)  # tied: may be there

    (message,) = run_ranks(_refusal, 1, broken(change), 1, 1)
    assert f"a LlamaForCausalLM of 2 layers). Missing: {NORM}. Unexpected: " in message
    assert "Unexpected: model.layers.1.self_attn.q_proj.bias, model.layers.7" in message
    assert "inv_freq" not in message and "lm_head" not in message


def test_many_surplus_tensors_are_counted(broken):
    def change(tensors):
        tensors.update({f"extra.{n}": torch.ones(1) for n in range(8)})

    (message,) = run_ranks(_refusal, 1, broken(change), 1, 1)
    assert "Missing: none" in message
    assert "extra.4 and 3 more" in message


@pytest.mark.parametrize(
    ("name", "shape"),
    [(NORM, (33,)), (PROJ, (32, 16)), ("model.embed_tokens.weight", (131, 30))],
)
def test_wrong_shape_names_the_tensor_and_both_shapes(broken, name, shape):
    folder = broken(lambda tensors: tensors.update({name: torch.ones(*shape)}))
    for message in run_ranks(_refusal, 1, folder, 1, 1):
        assert f"{name} is {list(shape)}, expected [" in message
        assert str(folder) in message


def test_wrong_shape_is_found_by_every_rank_of_a_layout(broken):
    """Both ranks raise: none may wait for the other in a collective."""
    folder = broken(lambda t: t.update({NORM: torch.ones(33)}))
    one, two = run_ranks(_refusal, 2, folder, 2, 1)
    assert one == two
    assert f"{NORM} is [33], expected [32]" in one


def test_a_truncated_file_is_found_by_every_rank_of_a_layout(source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "broken")
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    one, two = run_ranks(_refusal, 2, folder, 2, 1)
    assert one == two
    assert str(file) in one and "truncated" in one


def test_rows_missing_from_the_vocabulary_are_not_padded_away(broken):
    """With TP=2 a vocabulary of 130 and one of 131 fill the same tensors."""
    name = "model.embed_tokens.weight"
    folder = broken(lambda t: t.update({name: t[name][:-1].contiguous()}))
    for message in run_ranks(_refusal, 2, folder, 2, 1):
        assert f"{name} is [130, 32], expected [131, 32]" in message


def _one_rank_logprobs(rank, folder, ids, overrides):
    backend = engine(rank, folder, policy_config(hf_config_overrides=overrides, **LONG))
    lengths = torch.full((len(ids),), ids.shape[1])
    return backend.get_logprobs({"input_ids": ids, "input_lengths": lengths})


LONG = {"max_total_sequence_length": 128}


def hf_logprobs(folder, ids):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits, -1)
    return logprobs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rotary_scaling_equals_hugging_face(tmp_path, factor):
    config = models.tiny_config("llama", layers=2, hidden=128, heads=4, kv_heads=2)
    config.rope_parameters = {
        "rope_type": "llama3",
        # Wavelengths over 16 pairs of channels lie on all three branches.
        "rope_theta": 5e5,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config.max_position_embeddings = 16384
    models.build(config).save_pretrained(tmp_path)
    ids = torch.randint(3, 131, (2, 100), generator=torch.Generator().manual_seed(0))
    (got,) = run_ranks(_one_rank_logprobs, 1, tmp_path, ids, {})
    want = hf_logprobs(tmp_path, ids)
    torch.testing.assert_close(got[:, 1:], want, atol=1e-5, rtol=1e-5)
    # The scaling matters at this length: without it the numbers differ.
    plain = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    (unscaled,) = run_ranks(_one_rank_logprobs, 1, tmp_path, ids, plain)
    assert (unscaled[:, 1:] - want).abs().max() > 1e-4


def test_rotary_base_and_norm_epsilon_are_read(tmp_path):
    config = models.tiny_config("llama", layers=1, hidden=32)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 77.0}
    config.rms_norm_eps = 0.05
    models.build(config).save_pretrained(tmp_path)
    ids = torch.randint(3, 131, (2, 20), generator=torch.Generator().manual_seed(0))
    (got,) = run_ranks(_one_rank_logprobs, 1, tmp_path, ids, {})
    want = hf_logprobs(tmp_path, ids)
    torch.testing.assert_close(got[:, 1:], want, atol=1e-5, rtol=1e-5)


def test_config_overrides_reach_the_model(source):
    ids = torch.randint(3, 131, (1, 9), generator=torch.Generator().manual_seed(0))
    (plain,) = run_ranks(_one_rank_logprobs, 1, source, ids, {})
    changed = {"rms_norm_eps": 0.5}
    (other,) = run_ranks(_one_rank_logprobs, 1, source, ids, changed)
    assert (plain - other).abs().max() > 1e-3
    declared = json.loads((source / "config.json").read_text())["rms_norm_eps"]
    assert declared == 1e-6


def _layout(rank, folder, tp, pp):
    from nemo_rl.backends.training.megatron.model import layer_offset, rule_name

    backend = engine(rank, folder, policy_config(tp, pp))
    names = [n for n, _ in backend.model.named_parameters()]
    canonical = [rule_name(n, backend.model, backend.spec) for n in names]
    return layer_offset(backend.model), names, canonical


def test_stages_name_their_weights_globally(source):
    (first, _, one), (second, _, two) = run_ranks(_layout, 2, source, 1, 2)
    assert (first, second) == (0, 1)
    assert any(name.startswith("decoder.layers.0.") for name in one)
    assert not any(name.startswith("decoder.layers.1.") for name in one)
    assert any(name.startswith("decoder.layers.1.") for name in two)
    # The last stage's copy of a tied embedding goes by the embedding's name.
    assert "embedding.word_embeddings.weight" in one
    assert "embedding.word_embeddings.weight" in two
    assert "output_layer.weight" not in two
