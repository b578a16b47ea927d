"""Formats of other tools and layouts: what they write is read, what is written loads.

Real FSDP2 on two gloo ranks, real peft, real Megatron; all on the CPU.
"""

from __future__ import annotations

import pytest
import torch
import transformers

from nemo_rl.converters.dcp import dcp_to_hf, hf_to_dcp
from nemo_rl.converters.hf import HfWeights
from tests.fakes import models
from tests.functional.ranks import run_ranks


def contents(folder):
    with HfWeights(folder) as weights:
        return {name: weights.tensor(name) for name in weights.names()}


def _fsdp(rank, folder, loaded, saved):
    """Load a converted checkpoint into a divided model, train a step, save it."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    address = f"tcp://127.0.0.1:{rank.master_port}"
    dist.init_process_group(
        "gloo", rank=rank.rank, world_size=rank.world_size, init_method=address
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    mesh = init_device_mesh("cpu", (rank.world_size,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    state, _ = get_state_dict(model, optimizer)
    dcp.load({"model": state}, checkpoint_id=loaded)
    before = {name: t.full_tensor().clone() for name, t in state.items()}
    model(torch.arange(8)[None]).logits.square().sum().backward()
    optimizer.step()
    weights, moments = get_state_dict(model, optimizer)
    after = {name: t.full_tensor().clone() for name, t in weights.items()}
    dcp.save({"model": weights, "optim": moments, "step": 1}, checkpoint_id=saved)
    return before, after


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_fsdp_loads_what_is_written_and_what_it_saves_is_read(tmp_path, family):
    """The vocabulary of 131 divides unevenly over the ranks."""
    shape = {"tied": family == "qwen2", "layers": 2, "hidden": 32}
    source = models.save(tmp_path / "source", family, seed=1, **shape)
    other = models.save(tmp_path / "other", family, seed=2, **shape)
    loaded, saved = tmp_path / "loaded", tmp_path / "saved"
    hf_to_dcp(source, loaded)
    before, after = run_ranks(_fsdp, 2, other, loaded, saved)[0]
    left = dcp_to_hf(saved, tmp_path / "back", config=source)
    assert "step" in left and len(left) > 50
    for name, value in contents(source).items():
        assert torch.equal(before[name], value), name
    for name, value in contents(tmp_path / "back").items():
        assert torch.equal(after[name], value), name
        assert not torch.equal(before[name], value), name
