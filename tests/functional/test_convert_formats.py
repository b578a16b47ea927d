"""Formats of other tools and layouts: what they write is read, what is written loads.

Real FSDP2 on two gloo ranks, real peft, real Megatron; all on the CPU.
"""

from __future__ import annotations

import pytest
import torch
import transformers

from nemo_rl.converters.bridge import find_weights
from nemo_rl.converters.dcp import dcp_to_hf, hf_to_dcp
from nemo_rl.converters.formats.dist_checkpoint import DistCheckpoint, read_index
from nemo_rl.converters.formats.hf import HfWeights
from nemo_rl.converters.layout import Layout
from nemo_rl.converters.lora import lora_merge
from nemo_rl.converters.reshard import reshard
from tests.fakes import models
from tests.functional.ranks import run_ranks
from tests.functional.test_convert import WIDE, session


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


def _adapter(base, folder, dtype=torch.float32, **fields):
    """A real peft adapter with random tensors; the model that it was trained in."""
    peft = pytest.importorskip("peft", reason="peft comes with the extra dev")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**fields)).eval()
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    wrapped.save_pretrained(folder)
    return wrapped


LINEARS = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear"}
ADAPTERS = {
    "plain": LINEARS,
    "rslora": {**LINEARS, "use_rslora": True},
    "patterns": {
        **LINEARS,
        "rank_pattern": {"q_proj": 2, r"layers.1.mlp.\w+": 8},
        "alpha_pattern": {r"^model.layers.0.self_attn.v_proj": 3},
    },
    "saved": {
        "r": 2,
        "target_modules": ["o_proj"],
        "modules_to_save": ["lm_head", "norm"],
    },
    "embedding": {"r": 2, "target_modules": ["embed_tokens", "lm_head"]},
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ADAPTERS)
def test_lora_is_merged_as_peft_merges_it(tmp_path, kind):
    base = models.save(tmp_path / "base", "llama", layers=2, hidden=32)
    wrapped = _adapter(base, tmp_path / "adapter", **ADAPTERS[kind])
    assert lora_merge(base, tmp_path / "adapter", tmp_path / "out") == []
    wrapped.merge_and_unload().save_pretrained(tmp_path / "peft")
    ours, theirs = contents(tmp_path / "out"), contents(tmp_path / "peft")
    before = contents(base)
    assert ours.keys() == theirs.keys() == before.keys()
    assert sum(not torch.equal(ours[n], before[n]) for n in ours) >= 2
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lora_of_a_family_without_rules_and_with_transposed_weights(tmp_path):
    """GPT-2 stores its linear layers as [in, out]."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 131}
    config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    fields = {"r": 3, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    wrapped = _adapter(tmp_path / "base", tmp_path / "adapter", **fields)
    lora_merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    expected = wrapped.merge_and_unload().state_dict()
    for name, value in contents(tmp_path / "out").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["saved", "embedding"])
def test_lora_of_a_tied_layer_gives_the_model_that_was_trained(tmp_path, kind):
    """peft merges both names of the one tensor; the trained model had two."""
    base = models.save(tmp_path / "base", "qwen2", tied=True, layers=2, hidden=32)
    wrapped = _adapter(base, tmp_path / "adapter", **ADAPTERS[kind])
    ids = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        expected = wrapped(ids).logits
    (note,) = lora_merge(base, tmp_path / "adapter", tmp_path / "out")
    assert "tie_word_embeddings is false" in note
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lora_in_bfloat16_is_rounded_once(tmp_path):
    full = models.save(tmp_path / "full", "llama", layers=2, hidden=32)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        full, dtype=torch.bfloat16
    )
    model.save_pretrained(tmp_path / "base")
    _adapter(tmp_path / "base", tmp_path / "adapter", torch.bfloat16, **LINEARS)
    lora_merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    # The same adapter on the same weights in float32, rounded at the end.
    model.float().save_pretrained(tmp_path / "wide")
    peft = pytest.importorskip("peft", reason="peft comes with the extra dev")
    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    wide = peft.PeftModel.from_pretrained(wide, tmp_path / "adapter").float()
    expected = wide.merge_and_unload().state_dict()
    for name, value in contents(tmp_path / "out").items():
        assert value.dtype is torch.bfloat16
        assert torch.equal(value, expected[name].bfloat16()), name


def _saved_after_a_step(rank, folder, layout, path):
    one = session(rank, folder, layout)
    one.step(0)
    one.save(path)


def _resumed(rank, folder, layout, paths):
    """Resume from each checkpoint, make a step, save beside it."""
    one = session(rank, folder, layout)
    for path in paths:
        one.backend.load_checkpoint(path)
        result = one.step(1)
        one.save(path.with_name(f"{path.name}-after"))
    return result


def boxes(checkpoint):
    """Every entry and the pieces that it is stored in."""
    found = read_index(find_weights(checkpoint)).state_dict_metadata
    return {
        key: sorted((c.offsets, c.sizes) for c in getattr(entry, "chunks", []))
        for key, entry in found.items()
    }


@pytest.mark.parametrize(
    ("family", "before", "layout", "sizes"),
    [
        ("qwen2", "one", "tp2pp2", Layout(tp=2, pp=2)),
        pytest.param("qwen3_moe", "one", "ep2", Layout(ep=2), marks=pytest.mark.slow),
    ],
)
def test_training_goes_on_from_a_resharded_checkpoint(
    tmp_path, family, before, layout, sizes
):
    """Bit for bit as from the original; in the pieces that Megatron itself writes."""
    source = models.save(tmp_path / "source", family, tied=True, layers=2, hidden=32)
    one, two = tmp_path / "one", tmp_path / "two"
    run_ranks(_saved_after_a_step, WIDE[before][0], source, before, one)
    reshard(one, two, sizes)
    run_ranks(_resumed, WIDE[layout][0], source, layout, [one, two])
    after = [find_weights(tmp_path / f"{name}-after") for name in ("one", "two")]
    start, left, right = (DistCheckpoint(p) for p in (find_weights(two), *after))
    assert left.tensors.keys() == right.tensors.keys()
    assert any(key.startswith("optimizer.state.exp_avg.") for key in left.tensors)
    for key in left.tensors:
        assert torch.equal(left.read(key), right.read(key)), key
        assert not torch.equal(left.read(key), start.read(key)), key
    assert boxes(two) == boxes(tmp_path / "two-after")
