"""The commands ``hf-to-dcp``, ``dcp-to-hf``, ``lora-merge`` and ``reshard``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nemo_rl.converters.cli.parser import DTYPES, Command
from nemo_rl.converters.cli.report import memory, progress
from nemo_rl.utils.exceptions import ConfigurationError

_PROOF = """
Tensors are read and written one at a time, in one process and without a model. The
result is read back, compared with what it is made of, and only then named OUT."""
_HF_TO_DCP = f"""Convert a Hugging Face folder to a torch.distributed.checkpoint folder.

    hf-to-dcp Qwen3-8B qwen3-dcp
    hf-to-dcp Qwen3-8B qwen3-dcp --dtype float32

A DTensor or FSDP2 model loads it, however it is divided:

    state = {{"model": model.state_dict()}}
    torch.distributed.checkpoint.load(state, checkpoint_id="qwen3-dcp")
{_PROOF}
config.json and the tokenizer are kept in OUT/hf, so the way back needs nothing else."""
_DCP_TO_HF = f"""Convert the model of a torch.distributed.checkpoint folder.

    dcp-to-hf CHECKPOINT out --config Qwen3-8B
    dcp-to-hf CHECKPOINT out --config Qwen3-8B --prefix ema --dtype bfloat16

For what a DTensor or FSDP2 trainer wrote with save({{"model": state_dict, "optim":
...}}). What stands before the Hugging Face names is found out. The optimizer and other
entries are left alone.
{_PROOF}"""
_LORA_MERGE = f"""Merge a LoRA adapter of peft into the model that it was trained on.

    lora-merge Qwen3-8B adapter merged

Every weight becomes W + scale * B @ A, computed in float32 and rounded once to the
dtype that the base has. Covered are linear layers and embeddings, rank and alpha per
module, rank-stabilised scales and whole modules that were trained; adapters of other
kinds are refused.
{_PROOF}"""
_RESHARD = f"""Write a Megatron checkpoint anew in the pieces that a layout would write.

    reshard RUN/checkpoints/step_000100 out --tp 8 --pp 2
    reshard qwen3-megatron out --tp 2 --pp 4 --ep 8

A checkpoint loads under any layout as it is; nobody needs this to change the layout. It
is worth its time where many jobs start from one checkpoint, or where the file system is
slow with many small reads: a rank then reads whole pieces from one file instead of
parts of other ranks' pieces.

The content stays the same. The optimizer of a training checkpoint is divided like its
weights, the rest of the folder is copied: training resumes from OUT.
{_PROOF}"""


def _target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", type=Path, metavar="OUT", help="a folder that does not exist"
    )


def _dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of the result (default: the source's)"
    )


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="MODEL",
        help="Hugging Face folder of the model (default: what the source keeps in hf)",
    )


def _shards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shard-gib",
        type=float,
        default=4.0,
        metavar="GIB",
        help="size of a file of the result (default: 4)",
    )


def _shard_bytes(options: argparse.Namespace) -> int:
    if options.shard_gib <= 0:
        raise ConfigurationError(
            f"--shard-gib is {options.shard_gib}, expected more than 0"
        )
    return int(options.shard_gib * 2**30)


def _chosen(options: argparse.Namespace) -> Any:
    import torch

    return getattr(torch, options.dtype) if options.dtype else None


def _bytes_in(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


def _done(target: Path, notes: Iterable[str] = ()) -> None:
    for note in notes:
        print(f"note: {note}")
    print(f"wrote {target}; read back and equal to what it is made of; {memory()}")


def _to_dcp_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="MODEL")
    _target(parser)
    _dtype(parser)
    parser.add_argument(
        "--prefix", default="model", help="put before every name (default: model)"
    )


def _to_dcp(options: argparse.Namespace) -> None:
    from nemo_rl.converters.dcp import hf_to_dcp

    dtype = _chosen(options)
    with progress(2 * _bytes_in(options.source, "*.safetensors")) as advance:
        hf_to_dcp(
            options.source,
            options.target,
            prefix=options.prefix,
            dtype=dtype,
            progress=advance,
        )
    _done(options.target)


def _from_dcp_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="DCP")
    _target(parser)
    _config(parser)
    parser.add_argument(
        "--prefix", help="what stands before the names (default: found out)"
    )
    _dtype(parser)
    _shards(parser)


def _from_dcp(options: argparse.Namespace) -> None:
    from nemo_rl.converters.dcp import dcp_to_hf

    dtype, shard_bytes = _chosen(options), _shard_bytes(options)
    with progress(2 * _bytes_in(options.source, "*.distcp")) as advance:
        left = dcp_to_hf(
            options.source,
            options.target,
            config=options.config,
            prefix=options.prefix,
            dtype=dtype,
            shard_bytes=shard_bytes,
            progress=advance,
        )
    tops = sorted({name.split(".")[0] for name in left})
    notes = [f"left alone: {len(left)} entries of {', '.join(tops)}"] if left else []
    _done(options.target, notes)


def _merge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="BASE")
    parser.add_argument("adapter", type=Path, metavar="ADAPTER")
    _target(parser)
    _shards(parser)


def _merge(options: argparse.Namespace) -> None:
    from nemo_rl.converters.lora import lora_merge

    shard_bytes = _shard_bytes(options)
    with progress(2 * _bytes_in(options.source, "*.safetensors")) as advance:
        notes = lora_merge(
            options.source,
            options.adapter,
            options.target,
            shard_bytes=shard_bytes,
            progress=advance,
        )
    _done(options.target, notes)


def _reshard_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="CHECKPOINT")
    _target(parser)
    parser.add_argument(
        "--tp", type=int, default=1, metavar="N", help="tensor parallel size (1)"
    )
    parser.add_argument(
        "--pp", type=int, default=1, metavar="N", help="pipeline parallel size (1)"
    )
    parser.add_argument(
        "--ep", type=int, default=1, metavar="N", help="expert parallel size (1)"
    )
    _config(parser)


def _reshard(options: argparse.Namespace) -> None:
    from nemo_rl.converters.bridge import find_weights
    from nemo_rl.converters.layout import Layout
    from nemo_rl.converters.reshard import reshard

    layout = Layout(options.tp, options.pp, options.ep)
    size = 0
    if options.source.is_dir():
        size = _bytes_in(find_weights(options.source), "*.distcp")
    with progress(2 * size) as advance:
        work = reshard(
            options.source,
            options.target,
            layout,
            config=options.config,
            progress=advance,
        )
    print(
        f"{len(work.weights)} weights in the pieces of {layout.ranks} ranks, "
        f"{len(work.rest)} other entries as they were"
    )
    _done(options.target)


HF_TO_DCP = Command(
    "a Hugging Face folder to a torch.distributed.checkpoint folder",
    _to_dcp_arguments,
    _to_dcp,
    _HF_TO_DCP,
)
DCP_TO_HF = Command(
    "a torch.distributed.checkpoint folder to Hugging Face",
    _from_dcp_arguments,
    _from_dcp,
    _DCP_TO_HF,
)
LORA_MERGE = Command(
    "a LoRA adapter into the model that it was trained on",
    _merge_arguments,
    _merge,
    _LORA_MERGE,
)
RESHARD = Command(
    "a Megatron checkpoint in the pieces of another layout",
    _reshard_arguments,
    _reshard,
    _RESHARD,
)
