"""FLOPs from a model's shape, against a sum by hand and a public model."""

from __future__ import annotations

import pytest

from nemo_rl.metrics.throughput import ModelShape, peak_flops, throughput_metrics

CONFIG = {
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 100,
}


def test_matmul_parameters_by_hand():
    shape = ModelShape.from_hf_config(CONFIG)
    attention = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8
    assert shape.matmul_parameters == 2 * (attention + 3 * 8 * 16) + 8 * 100


def test_a_public_model_has_its_known_size():
    llama = ModelShape.from_hf_config(
        {
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "vocab_size": 128256,
        }
    )
    assert llama.matmul_parameters == pytest.approx(7.5e9, rel=0.01)


def test_optional_sizes_have_defaults():
    config = {k: v for k, v in CONFIG.items() if k != "num_key_value_heads"}
    shape = ModelShape.from_hf_config(config)
    assert (shape.kv_heads, shape.head_dim) == (4, 2)
    assert ModelShape.from_hf_config({**CONFIG, "head_dim": 16}).head_dim == 16
    incomplete = {k: v for k, v in CONFIG.items() if k != "vocab_size"}
    with pytest.raises(KeyError, match="vocab_size"):
        ModelShape.from_hf_config(incomplete)


def test_flops_grow_with_length_and_training_is_three_forwards():
    shape = ModelShape.from_hf_config(CONFIG)
    short, long = shape.forward_flops(10, 5), shape.forward_flops(10, 50)
    assert long - short == pytest.approx(10 * 2 * 2 * 8 * 45)
    assert shape.training_flops(10, 5) == pytest.approx(3 * short)


def test_peak_by_device_name():
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA GH200 480GB") == 989e12
    assert peak_flops("Some CPU") is None


def test_metrics():
    assert throughput_metrics(tokens=100, seconds=4, world_size=5) == {
        "tokens_per_s": 25.0,
        "tokens_per_s_per_worker": 5.0,
    }
    metrics = throughput_metrics(
        tokens=100, seconds=2, world_size=2, flops=8e12, peak_flops_per_device=10e12
    )
    assert metrics["tflops_per_worker"] == 2.0 and metrics["mfu"] == 0.2
    assert throughput_metrics(tokens=1, seconds=0, world_size=1) == {}
