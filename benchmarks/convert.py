"""MB/s of a checkpoint conversion against `cp` of the same bytes, and its memory.

Every turn copies the source with `cp`, converts it to a Megatron checkpoint and that
back to a Hugging Face folder, each in a fresh process. The clock runs from the call to
the verified result under its name; importing torch is not counted.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.page import PAGE, cpu_model, put

SECTION = "convert"
TITLE = "Checkpoint conversion against cp"
SIZES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "Llama 4 GB": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 18,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "Mixtral 4 GB": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_size": 2048,
        "intermediate_size": 3584,
        "num_hidden_layers": 10,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
}
COMMON = {
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "bfloat16",
}
"""Fields that all of the models share; shapes and dtype are those of the weights."""


def write_model(config: dict[str, Any], folder: Path) -> int:
    """Write a Hugging Face folder of random bfloat16 weights; returns their bytes."""
    import torch

    from nemo_rl.converters.bridge import weights_of
    from nemo_rl.converters.families import model_spec
    from nemo_rl.converters.formats.hf import finish_folder
    from nemo_rl.converters.formats.safetensors_stream import SafetensorsStream

    folder.mkdir(parents=True)
    config = COMMON | config
    described = folder.with_name("config")
    described.mkdir()
    (described / "config.json").write_text(json.dumps(config))
    spec = model_spec(config)
    names = [
        (name, spec.shape(dims), torch.bfloat16)
        for weight in weights_of(spec)
        for name, dims in weight.rule.hf.items()
    ]
    stream = SafetensorsStream(folder, names)
    generator = torch.Generator().manual_seed(0)
    for name, shape, dtype in names:
        value = torch.empty(shape, dtype=torch.float32)
        stream.add(name, value.uniform_(-1, 1, generator=generator).to(dtype))
    written = stream.close()
    finish_folder(folder, [written], source=described, config_changes={})
    return written["bytes"]


_CHILD = """
import json, sys, time
from pathlib import Path
import torch
from benchmarks.convert import level
from nemo_rl.converters import convert
from nemo_rl.converters.cli import report
source, target, threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
interpreter = report.resident()
level(source, target.parent)
wall, cpu = time.perf_counter(), time.process_time()
convert.convert(source, target, threads=threads or None)
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
conversion = convert.Conversion(convert.Request(source))
bound = interpreter + 2 * conversion.largest + (300 << 20)
print(json.dumps({"s": wall, "cpu_s": cpu, "peak": report.peak(), "bound": bound}))
"""


def convert(source: Path, target: Path, threads: int) -> dict[str, float]:
    """Convert in a fresh process; what it measured of itself."""
    os.sync()
    command = [sys.executable, "-c", _CHILD, str(source), str(target), str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def copy(source: Path, target: Path) -> dict[str, float]:
    """`cp -r`, and how long the copy then takes to reach the disk."""
    os.sync()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    copied = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    for file in target.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return {"s": copied, "safe_s": time.perf_counter() - begin, "cpu_s": cpu}


def level(source: Path, scratch: Path) -> None:
    """Write and remove the same bytes, so that everything begins with used memory.

    A virtual machine gets memory from its host when it first writes to it; without
    this, whatever comes first after something was removed would seem to be fast.
    """
    shutil.copytree(source, scratch / "level")
    shutil.rmtree(scratch / "level")


def measure(
    config: dict[str, Any], scratch: Path, turns: int, threads: int
) -> tuple[int, dict[str, list[dict[str, float]]]]:
    """Bytes of the weights, and every turn's measurements by what was done."""
    source = scratch / "source"
    size = write_model(config, source)
    found: dict[str, list[dict[str, float]]] = {"cp": [], "to": [], "from": []}
    for _ in range(turns):
        level(source, scratch)
        found["cp"].append(copy(source, scratch / "copy"))
        shutil.rmtree(scratch / "copy")
        found["to"].append(convert(source, scratch / "there", threads))
        found["from"].append(convert(scratch / "there", scratch / "back", threads))
        shutil.rmtree(scratch / "there")
        shutil.rmtree(scratch / "back")
    return size, found


def rows(name: str, size: int, found: dict[str, list[dict[str, float]]]) -> list[str]:
    """Table rows of one model."""
    lines = []
    copied = [size / 1e6 / turn["s"] for turn in found["cp"]]
    cp_cpu = statistics.median(turn["cpu_s"] for turn in found["cp"])
    safe = [size / 1e6 / turn["safe_s"] for turn in found["cp"]]
    for key, title in (("to", "to Megatron"), ("from", "to Hugging Face")):
        turns = found[key]
        speed = [size / 1e6 / turn["s"] for turn in turns]
        middle = statistics.median(speed)
        cpu = statistics.median(turn["cpu_s"] for turn in turns)
        peak = max(turn["peak"] for turn in turns) / 2**20
        bound = turns[0]["bound"] / 2**20
        lines.append(
            f"| {name} ({size / 1e6:,.0f} MB) | {title} | {_range(speed)} | {cpu:.2f} "
            f"| {_range(copied)} | {cp_cpu:.2f} "
            f"| {middle / statistics.median(copied):.2f} "
            f"| {middle / statistics.median(safe):.2f} | {peak:,.0f} | {bound:,.0f} |"
        )
    return lines


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f}–{max(values):,.0f})"


def page(table: list[str], options: argparse.Namespace) -> str:
    """The Markdown section: the table, and how and where it was measured."""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "safetensors", "xxhash")
    )
    return "\n".join(
        [
            "| Model | direction | MB/s: median (range) | CPU s | MB/s of `cp` "
            "| its CPU s | ratio to `cp` | ratio to `cp` and fsync | peak MiB "
            "| bound MiB |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *table,
            "",
            "Random bfloat16 weights of the model's shapes. A conversion digests every "
            "tensor, forces the result to the disk, reads it back through the page "
            "cache, compares digests, and writes a manifest with those of all files; "
            "`cp` does none of this, `cp` and fsync forces its copy to the disk. The "
            "bound is the interpreter with its imports, twice the largest weight, and "
            "300 MiB. The source is in the page cache, and before each measurement as "
            "many bytes are written and removed.",
            "",
            f"- Date: {datetime.date.today().isoformat()}",
            f"- Machine: {os.cpu_count()} cores, {cpu_model()}",
            f"- Versions: Python {platform.python_version()}, {versions}",
            f"- Turns: {options.turns}, one after the other",
            f"- Command: `python -m benchmarks.convert {shlex.join(sys.argv[1:])}`",
        ]
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convert")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: what convert takes")
    parser.add_argument("--models", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument("--scratch", type=Path, help="a folder with 20 GB of room")
    parser.add_argument("--write", action="store_true", help=f"update {PAGE.name}")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write it where asked to."""
    options = parse(argv)
    table: list[str] = []
    for name in options.models:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            size, found = measure(
                SIZES[name], Path(scratch), options.turns, options.threads
            )
        table += rows(name, size, found)
        print(*table[-2:], sep="\n", flush=True)
    section = page(table, options)
    print(section)
    if options.write:
        put(SECTION, TITLE, section)


if __name__ == "__main__":
    main()
