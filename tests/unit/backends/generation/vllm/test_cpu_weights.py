"""Packed weights on a CPU: readable, packed anew after a transfer, and probed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nemo_rl.backends.generation.vllm import cpu_weights
from nemo_rl.models.policy.canary import canary_batch, run_canary
from tests.functional.guarded import Pair, tiny_folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Experts of 24 channels, which vLLM pads to 32, a dense layer, a tied output."""
    folder = tmp_path_factory.mktemp("m") / "m"
    pair = Pair(tiny_folder(folder, "qwen3_moe-mixed", tied=True))
    yield pair
    pair.engine.shutdown()


def model_of(pair: Pair) -> torch.nn.Module:
    def find(engine):
        return engine.apply_model(lambda model: model)[0]

    return pair.engine._engine._call(find)


def worst_error(pair: Pair) -> float:
    batch = canary_batch(4, 8, vocab_size=131, special_ids=(0, 1, 2))
    answers = run_canary(batch, pair.generate, pair.score)
    return max(answer.errors.max_error for answer in answers)


def test_transfers_reach_the_kernels(pair: Pair):
    pair.refit()
    model = model_of(pair)
    for _ in range(3):
        pair.learn(0.05)
        assert worst_error(pair) > 1e-2
        pair.refit()
        assert cpu_weights.stale_layers(model) == []
        assert worst_error(pair) < 1e-4


def test_weights_stay_readable(pair: Pair):
    pair.refit()
    model, trained = model_of(pair), pair.trainer.get_parameter
    down = model.get_submodule("model.layers.1.mlp.down_proj")
    read = cpu_weights.readable_parameter(down, "weight")
    assert read is not None
    assert torch.equal(read, trained("model.layers.1.mlp.down_proj.weight"))
    experts = model.get_submodule("model.layers.0.mlp.experts.routed_experts")
    read = cpu_weights.readable_parameter(experts, "w2_weight")
    assert read is not None
    assert torch.equal(read, trained("model.layers.0.mlp.experts.down_proj"))
    assert experts.w2_weight.shape != read.shape
    kept = experts.nemo_rl_readable
    del experts.nemo_rl_readable
    assert cpu_weights.readable_parameter(experts, "w2_weight") is None
    experts.nemo_rl_readable = kept
    empty = torch.nn.Linear(0, 0)
    assert cpu_weights.readable_parameter(empty, "weight") is None


def test_a_second_call_wraps_nothing_twice(pair: Pair):
    from vllm.model_executor.layers import utils

    before = utils.dispatch_cpu_unquantized_gemm
    cpu_weights.keep_readable()
    assert utils.dispatch_cpu_unquantized_gemm is before and before.keeps_readable


def test_a_tied_output_layer_is_packed_anew(pair: Pair, monkeypatch):
    pair.refit()
    model = model_of(pair)
    pair.learn()
    with monkeypatch.context() as patched:
        patched.setattr(cpu_weights, "repack_tied", lambda model: 0)
        pair.refit()
    assert cpu_weights.stale_layers(model) == ["lm_head"]
    assert worst_error(pair) > 1e-2
    assert cpu_weights.repack_tied(model) == 1
    assert cpu_weights.stale_layers(model) == []
    assert worst_error(pair) < 1e-4
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("seed", [0, 1])
def test_a_packed_matrix_that_is_not_its_weight_is_found(pair: Pair, seed: int):
    pair.refit()
    model = model_of(pair)
    layers = ("model.layers.0.self_attn.qkv_proj", "model.layers.1.mlp.down_proj")
    for name in layers:
        weight = model.get_submodule(name).weight.data
        kept = weight.clone()
        weight.mul_(1.0 + 1e-6)  # less than an update of the smallest learning rate
        assert cpu_weights.stale_layers(model, seed=seed) == [name]
        weight.copy_(kept)
    experts = model.get_submodule("model.layers.0.mlp.experts.routed_experts")
    for name in ("w13_weight", "w2_weight"):
        packed = getattr(experts, name).data
        kept = packed.clone()
        packed.view(-1)[5] += 1.0
        stale = cpu_weights.stale_layers(model, seed=seed)
        assert stale == ["model.layers.0.mlp.experts.routed_experts"]
        packed.copy_(kept)
    assert cpu_weights.stale_layers(model, seed=seed) == []


def test_the_probe_is_not_misled_by_what_is_not_finite(pair: Pair):
    weight = pair.trainer.get_parameter("model.layers.1.mlp.down_proj.weight")
    kept = weight[3, 5].item()
    for value in (torch.nan, torch.inf):
        with torch.no_grad():
            weight[3, 5] = value
        pair.refit()
        assert cpu_weights.stale_layers(model_of(pair)) == []
    with torch.no_grad():
        weight[3, 5] = kept
