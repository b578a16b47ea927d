"""The commands for other formats: what they print and how they exit."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from nemo_rl.converters.cli.parser import main
from tests.fakes import models


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    return models.save(folder, "llama", layers=2, hidden=32)


def run(*arguments):
    return main([str(argument) for argument in arguments])


def adapter(folder):
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name": None}
    config["base_model_name_or_path"] = "some/other"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
    tensors = {f"{name}A.weight": torch.ones(2, 32)}
    tensors[f"{name}B.weight"] = torch.ones(32, 2)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_torch_checkpoints_there_and_back(source, tmp_path, capsys):
    there, back = tmp_path / "there", tmp_path / "back"
    assert run("hf-to-dcp", source, there, "--prefix", "policy.model") == 0
    assert run("dcp-to-hf", there, back, "--shard-gib", 1e-5) == 0
    assert run("verify", source, back) == run("verify", back) == 0
    out = capsys.readouterr().out
    assert out.count("read back and equal") == 2 and "left alone" not in out
    torch.distributed.checkpoint.save(
        {"model": {}, "optim": {"state": torch.ones(2)}, "step": 3, **loaded(source)},
        checkpoint_id=tmp_path / "trained",
    )
    run("dcp-to-hf", tmp_path / "trained", tmp_path / "out", "--config", source)
    assert "left alone: 2 entries of optim, step" in capsys.readouterr().out


def loaded(folder):
    from nemo_rl.converters.formats.hf import HfWeights

    with HfWeights(folder) as weights:
        return {name: weights.tensor(name).clone() for name in weights.names()}


def test_adapters_are_merged_with_notes(source, tmp_path, capsys):
    assert run("lora-merge", source, adapter(tmp_path / "a"), tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "note: the adapter says that its base is some/other" in out
    assert "read back and equal" in out and "MB/s" in out
    assert run("verify", tmp_path / "out") == 0
    assert run("verify", source, tmp_path / "out") == 2


def test_checkpoints_are_divided_anew(source, tmp_path, capsys):
    run("hf-to-megatron", source, tmp_path / "megatron")
    assert run("reshard", tmp_path / "megatron", tmp_path / "out", "--tp", 2) == 0
    assert "15 weights in the pieces of 2 ranks" in capsys.readouterr().out
    assert (
        run("verify", source, tmp_path / "out") == run("verify", tmp_path / "out") == 0
    )


def test_mistakes_are_one_paragraph_and_exit_code_2(source, tmp_path, capsys):
    run("hf-to-megatron", source, tmp_path / "megatron")
    out = tmp_path / "out"
    for arguments in (
        ("hf-to-dcp", tmp_path / "no", out),
        ("dcp-to-hf", source, out),
        ("dcp-to-hf", source, out, "--shard-gib", 0),
        ("lora-merge", source, source, out),
        ("reshard", tmp_path / "no", out),
        ("reshard", tmp_path / "megatron", out, "--tp", 3),
    ):
        assert run(*arguments) == 2, arguments
        error = capsys.readouterr().err
        assert error.startswith("nemo_rl: ") and error.count("\n") == 1
    assert "nearest valid: 2 or 4" in error and not out.exists()
