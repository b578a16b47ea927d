"""Real folders made broken: each a clear error, and nothing beside the source."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from nemo_rl.converters.cli.parser import main
from nemo_rl.converters.convert import convert
from nemo_rl.converters.families import model_spec, rules_for
from nemo_rl.converters.formats.safetensors_stream import plan_shards
from tests.fakes import models

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    models.save(folder / "one", "llama", tied=False, layers=2, hidden=32)
    convert(folder / "one", folder / "megatron")
    convert(folder / "megatron", folder / "sharded", shard_bytes=40_000)
    return folder / "sharded"


@pytest.fixture
def source(whole, tmp_path):
    (tmp_path / "source").mkdir()
    for file in whole.iterdir():
        (tmp_path / "source" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "source"


def shards(source):
    return sorted(source.glob("*.safetensors"))


def missing_shard(source):
    shards(source)[1].unlink()


def truncated(source):
    os.truncate(shards(source)[1], shards(source)[1].stat().st_size - 10)


def cut_header(source):
    os.truncate(shards(source)[0], 30)


def lies(source, **change):
    path = shards(source)[0]
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    next(e for name, e in header.items() if name != "__metadata__").update(change)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def lies_about_offsets(source):
    lies(source, data_offsets=[64, 131 * 32 * 4 + 64])


def lies_about_shape(source):
    lies(source, shape=[131, 33])


def change(source, edit):
    values = load_file(shards(source)[-1])
    edit(values)
    save_file(values, shards(source)[-1], {"format": "pt"})


def wrong_dtype(source):
    change(source, lambda v: v.update({n: t.to(torch.int64) for n, t in v.items()}))


def extra_tensor(source):
    change(source, lambda v: v.update({"model.layers.0.surprise": torch.ones(3)}))


def same_tensor_twice(source):
    name = next(iter(load_file(shards(source)[0])))
    change(source, lambda v: v.update({name: torch.ones(3)}))


def lost_tensor(source):
    change(source, lambda v: v.pop(next(iter(v))))


def another_shape(source):
    change(source, lambda v: v.update({n: t[:-1].clone() for n, t in v.items()}))


def traversal(source):
    os.rename(shards(source)[0], source.parent / "outside.safetensors")
    index = json.loads((source / INDEX).read_text())
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = "../outside.safetensors"
    (source / INDEX).write_text(json.dumps(index))


def adapter(source):
    for path in source.iterdir():
        path.unlink()
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"lora_A": torch.ones(2, 2)}, source / "adapter_model.safetensors")


def no_config(source):
    (source / "config.json").unlink()


def other_architecture(source):
    config = json.loads((source / "config.json").read_text())
    config["architectures"] = ["BertForMaskedLM"]
    (source / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_shard, "is incomplete: .* which is missing. Download"),
        (truncated, "not a readable safetensors file .* truncated: download"),
        (cut_header, "not a readable safetensors file"),
        (lies_about_offsets, "not a readable safetensors file"),
        (lies_about_shape, "not a readable safetensors file"),
        (wrong_dtype, "is I64, expected one of F64, F32, F16, BF16"),
        (extra_tensor, "do not match config.json .* Unexpected: model.layers.0.surp"),
        (same_tensor_twice, "is in model-.* and in model-.* Remove the shard"),
        (lost_tensor, "lacks 1 tensors that model.safetensors.index.json says"),
        (another_shape, "do not have the shape that config.json implies"),
        (traversal, "names the shard '../outside.safetensors', which is not a file of"),
        (adapter, "holds a LoRA adapter.* Merge it into its base"),
        (no_config, "config.json"),
        (other_architecture, "declares architectures=.'BertForMaskedLM'."),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_source_is_a_clear_error(source, damage, message, capsys):
    damage(source)
    beside = sorted(source.parent.iterdir())
    assert main(["hf-to-megatron", str(source), str(source.parent / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("nemo_rl: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert sorted(source.parent.iterdir()) == beside


def damaged_checkpoint(source, whole):
    folder = source.parent / "megatron"
    folder.mkdir()
    for path in (whole.parent / "megatron").rglob("*"):
        if path.is_file():
            place = folder / path.relative_to(whole.parent / "megatron")
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("__0_0.distcp", 5000, "cannot read .* the file ends at byte 5000"),
        ("__0_0.distcp", None, "cannot read .* No such file"),
        (".metadata", 50, "not a readable index|is damaged"),
        ("hf/config.json", None, "config.json"),
    ],
)
def test_a_damaged_checkpoint_is_a_clear_error(
    source, whole, name, size, message, capsys
):
    folder = damaged_checkpoint(source, whole)
    if size is None:
        (folder / name).unlink()
    else:
        os.truncate(folder / name, size)
    out = source.parent / "out"
    assert main(["megatron-to-hf", str(folder), str(out)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not out.exists()


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(
    tmp_path, capsys
):
    """A model larger than the disk: its file has no blocks, only a size."""
    source = models.save(tmp_path / "huge", "llama", tied=True, layers=1, hidden=32)
    layer = 3 * 32 * 4 * (1 << 23)
    layers = shutil.disk_usage(tmp_path).free // layer + 1
    change = {"num_hidden_layers": layers, "intermediate_size": 1 << 23}
    config = json.loads((source / "config.json").read_text()) | change
    (source / "config.json").write_text(json.dumps(config))
    spec = model_spec(config)
    announced = [
        (name, spec.shape(dims), torch.float32)
        for rule in rules_for(spec).values()
        for name, dims in rule.hf.items()
    ]
    (shard,) = plan_shards(announced, 1 << 60)
    (source / "model.safetensors").write_bytes(shard.header)
    os.truncate(source / "model.safetensors", shard.size)
    command = ["hf-to-megatron", str(source), str(tmp_path / "out")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "needs" in error and "free. Free disk space" in error
    assert [p.name for p in tmp_path.iterdir()] == ["huge"]
    assert main([*command, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "__0_1.distcp" in out and "memory: at most" in out
