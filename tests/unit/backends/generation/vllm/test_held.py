"""What a real engine holds equals what is in the folder, in every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nemo_rl.backends.generation.vllm.backend import VLLMBackend
from nemo_rl.backends.generation.vllm.settings import VllmSettings
from nemo_rl.backends.refit.base import TensorSpec
from nemo_rl.backends.refit.digest import sent_digests, tensor_digest
from nemo_rl.backends.refit.held import EngineWeights, merge_ranks
from tests.functional.guarded import shapes_of, specs_of, tiny_folder

FAMILIES = {
    "llama": False,
    "qwen2": True,
    "qwen3": False,
    "mistral": False,
    "gemma3": True,
    "qwen3_moe-mixed": False,
    "qwen2_moe": False,
    "phi3": False,
}
"""Family to whether its output layer is the embedding."""


def start(folder: Path, dtype: str = "float32") -> VLLMBackend:
    backend = VLLMBackend()
    backend.setup(
        VllmSettings(
            model=str(folder),
            dtype=dtype,
            max_model_len=64,
            load_format="auto",
            more={"max_num_seqs": 2, "kv_cache_memory_bytes": 4 << 20},
        )
    )
    return backend


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {n: w for f in folder.glob("*.safetensors") for n, w in load_file(f).items()}


def read(backend: VLLMBackend, weights: dict[str, torch.Tensor]) -> EngineWeights:
    return merge_ranks(backend.held(specs_of(weights)), shapes_of(weights))


EVERY_RUN = ("qwen2", "qwen3_moe-mixed")
"""Biases, tied, experts; an engine's start takes seconds, so the others are slow."""


@pytest.mark.parametrize(
    "family",
    [
        family if family in EVERY_RUN else pytest.param(family, marks=pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_every_tensor_of_a_folder_is_read_back(family: str, tmp_path: Path):
    folder = tiny_folder(tmp_path / "m", family, tied=FAMILIES[family])
    weights = tensors_of(folder)
    backend = start(folder)
    try:
        for version in range(3):  # as started, and after two transfers
            if version:
                weights = {
                    n: w + 0.01 * torch.randn_like(w) for n, w in weights.items()
                }
                backend.update_weights(weights, version)
            held = read(backend, weights)
            expected = {name: tensor_digest(w) for name, w in weights.items()}
            assert held.digests == expected
            assert not held.uncovered and not held.torn and not held.unsent
            assert not held.stale and not held.non_finite
    finally:
        backend.shutdown()


def test_what_cannot_be_compared_is_told(tmp_path: Path):
    folder = tiny_folder(tmp_path / "m", "qwen3_moe-mixed", layers=2)
    weights = tensors_of(folder)
    backend = start(folder, "bfloat16")
    layer = "model.layers.0.mlp.experts"
    others = [
        TensorSpec("model.layers.0.self_attn.sinks", "float32", (4,)),
        TensorSpec("model.layers.1.mlp.up_proj.weight", "bfloat16", (192, 99)),
        TensorSpec("model.norm.weight", "bfloat16", (64,)),
        TensorSpec(f"{layer}.0.q_proj.weight", "bfloat16", (24, 128)),
        TensorSpec(f"{layer}.9.up_proj.weight", "bfloat16", (24, 128)),
    ]
    try:
        held = read(backend, weights)
        (rank,) = backend.held(others)
    finally:
        backend.shutdown()
    matrices = {name for name, w in weights.items() if w.dim() == 2}
    assert set(held.uncovered) == matrices and not held.unsent
    assert "sent in float32 and held in bfloat16" in held.uncovered["lm_head.weight"]
    # Vectors travel as they are and are rounded: their digests are known for that.
    norms = set(weights) - matrices
    assert held.rounded == dict.fromkeys(norms, "bfloat16")
    assert all(
        held.digests[name] == sent_digests(weights[name])["bfloat16"] for name in norms
    )
    reasons = {name: rank.uncovered.get(name, "") for name in (o.name for o in others)}
    assert "has no 'sinks'" in reasons["model.layers.0.self_attn.sinks"]
    assert "held as [192, 128]" in reasons["model.layers.1.mlp.up_proj.weight"]
    assert "held as [128]" in reasons["model.norm.weight"]
    assert "experts have no '0.qkv_proj.weight'" in reasons[f"{layer}.0.q_proj.weight"]
    assert "experts have no '9.up" in reasons[f"{layer}.9.up_proj.weight"]


def test_a_layer_that_cuts_in_its_own_way_is_not_guessed():
    from vllm.model_executor.layers.linear import QKVParallelLinear

    from nemo_rl.backends.generation.vllm.held import Uncovered, held_pieces

    class Other(QKVParallelLinear):
        def __init__(self):
            torch.nn.Module.__init__(self)

        def _get_shard_offset_mapping(self, loaded_shard_id):
            return 0

    model = torch.nn.Module()
    model.qkv_proj = Other()
    model.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    with pytest.raises(Uncovered, match="a Other, which cuts weights in its own way"):
        held_pieces(model, "q_proj.weight", (4, 4))


def test_an_older_table_of_names_and_a_missing_stage_are_understood():
    from vllm.model_executor.models.utils import PPMissingLayer

    from nemo_rl.backends.generation.vllm.held import _find, held_pieces

    model = torch.nn.Module()
    model.packed_modules_mapping = {"gate_up_proj": ["gate_proj", "up_proj"]}
    model.gate_up_proj = torch.nn.Linear(2, 4)
    model.lm_head = PPMissingLayer()
    found = _find(model, "up_proj.weight")
    assert found == (model.gate_up_proj, "weight", 1)
    assert held_pieces(model, "lm_head.weight", (4, 2)) == []
