"""The table of tensors of every kind of folder."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from nemo_rl.converters.cli.inspect import Row, rows_of, table
from nemo_rl.converters.cli.parser import main
from tests.fakes import models


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_the_table_is_in_the_order_of_the_layers_with_totals():
    rows = [
        Row("optim.layers.10.w", (2,), "float32", (1,), 8),
        Row("layers.10.w", (4, 2), "float32", (2, 1), 32),
        Row("layers.2.w", (4, 2), "bfloat16", (2, 1), 16),
        Row("step", (), "float32", (), 4),
    ]
    lines = [line.split() for line in table(rows)]
    assert lines[0] == ["tensor", "shape", "dtype", "layout", "bytes"]
    assert [line[0] for line in lines[1:5]] == [
        "layers.2.w",
        "layers.10.w",
        "optim.layers.10.w",
        "step",
    ]
    assert " ".join(lines[2]) == "layers.10.w 4 x 2 float32 2 x 1 32"
    assert " ".join(lines[4]) == "step scalar float32 - 4"
    totals = [" ".join(line) for line in lines[5:]]
    assert totals == [
        "1 tensors of the model in bfloat16, 16 bytes",
        "2 tensors of the model in float32, 36 bytes",
        "1 tensors of the optimizer in float32, 8 bytes",
        "4 tensors, 60 bytes",
    ]


def test_tensors_of_every_kind_of_folder_are_listed(tmp_path, capsys):
    source = models.save(tmp_path / "llama", "llama", layers=2, hidden=32)
    run("hf-to-megatron", source, tmp_path / "megatron", "--dtype", "bfloat16")
    run("reshard", tmp_path / "megatron", tmp_path / "wide", "--tp", 2)
    run("hf-to-dcp", source, tmp_path / "dcp")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    save_file(
        {"a": torch.ones(2, dtype=torch.int8)}, adapter / "adapter_model.safetensors"
    )
    capsys.readouterr()
    for folder in ("llama", "megatron", "wide", "dcp", "adapter"):
        assert run("inspect", tmp_path / folder) == 0
    out = capsys.readouterr().out
    assert "model.layers.1.self_attn.q_proj.weight" in out and "F32" in out
    assert "decoder.layers.mlp.linear_fc2.weight" in out and "bfloat16" in out
    assert rows_of(adapter) == [Row("a", (2,), "I8", (), 2)]
    grids = {row.name: row.layout for row in rows_of(tmp_path / "wide")}
    assert grids["decoder.layers.mlp.linear_fc2.weight"] == (2, 1, 2)
    (norm,) = [
        r for r in rows_of(tmp_path / "dcp") if r.name == "model.model.norm.weight"
    ]
    assert norm == Row("model.model.norm.weight", (32,), "float32", (1,), 128)


def test_what_is_no_folder_of_weights_says_so(tmp_path, capsys):
    assert run("inspect", tmp_path) == 2
    assert "has neither model.safetensors nor" in capsys.readouterr().err
