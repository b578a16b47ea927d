"""The table of tensors of either kind of folder."""

from __future__ import annotations

from nemo_rl.converters.cli import main
from tests.fakes import models


def test_tensors_of_either_kind_are_listed(tmp_path, capsys):
    source, there = tmp_path / "llama", tmp_path / "there"
    models.save(source, "llama", tied=False, layers=2, hidden=32)
    main(["hf-to-megatron", str(source), str(there), "--dtype", "bfloat16"])
    capsys.readouterr()
    assert main(["inspect", str(source)]) == main(["inspect", str(there)]) == 0
    out = capsys.readouterr().out
    assert "model.layers.1.self_attn.q_proj.weight" in out and "float32" in out
    assert "decoder.layers.mlp.linear_fc2.weight" in out and "bfloat16" in out
