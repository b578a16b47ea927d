"""Seconds and memory of moving weights to a generator's processes, against memcpy.

Real processes: one to send per tensor-parallel rank, two to receive. Random matrices of
a Llama's shapes in bfloat16. With TP2 the sending ranks hold halves and gather them as
the trainer does. A copy of the same bytes inside one process is measured in every turn.
Where there is a GPU its memory is shared too, in rows of their own.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.page import PAGE, cpu_model, put

SECTION = "refit"
TITLE = "Moving weights to a generator"
SIZES = {"0.1 GB": 0.1e9, "0.3 GB": 0.3e9, "1.0 GB": 1.0e9}
TRANSPORTS = ("gloo", "ipc", "files")
NAMES = {"gloo": "gloo", "ipc": "shared memory", "files": "files", "cuda": "CUDA IPC"}
RECEIVERS = 2
_SPAWN = multiprocessing.get_context("spawn")


def plan(size: float) -> tuple:
    """Specs of a Llama of about ``size`` bytes: hidden 1024, vocabulary 16k."""
    from nemo_rl.backends.refit.base import TensorSpec

    hidden, ffn = 1024, 2816
    layer = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 4, hidden),
        "self_attn.v_proj": (hidden // 4, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    specs = [TensorSpec("model.embed_tokens.weight", "bfloat16", (16384, hidden))]
    total, number = specs[0].nbytes, 0
    while total < size:
        for name, shape in layer.items():
            full = f"model.layers.{number}.{name}.weight"
            specs.append(TensorSpec(full, "bfloat16", shape))
            total += specs[-1].nbytes
        number += 1
    return tuple(specs)


def _export(link: Any, rank: int, tp: int, device: str) -> Any:
    """A function that yields full tensors, gathered from ``tp`` processes."""
    import torch
    import torch.distributed as dist

    held = {}
    for spec in link.stages[0]:
        rows = spec.shape[0] // tp if len(spec.shape) > 1 else spec.shape[0]
        held[spec.name] = torch.ones(
            rows, *spec.shape[1:], dtype=spec.torch_dtype, device=device
        )
    if tp > 1:
        store = dist.TCPStore(link.host, link.port, wait_for_workers=False)
        dist.init_process_group(
            "gloo", store=dist.PrefixStore("tp", store), rank=rank, world_size=tp
        )

    def pairs() -> Iterator[tuple[str, Any]]:
        for name, part in held.items():
            if tp == 1 or part.dim() == 1:
                yield name, part
                continue
            parts = [torch.empty_like(part) for _ in range(tp)]
            dist.all_gather(parts, part)
            yield name, torch.cat(parts)

    return pairs


def _sender(link: Any, rank: int, tp: int, device: str, turns: int, pipe: Any) -> None:
    from dataclasses import replace

    import torch

    from nemo_rl.backends.refit.base import open_sender

    torch.set_num_threads(1)
    export = _export(link, rank, tp, device)
    for turn in range(turns):
        pipe.recv()
        cpu = time.process_time()
        if rank:
            for _ in export():
                pass
            stats: dict[str, Any] = {"peak_extra_bytes": 0, "bytes_moved": 0}
        else:
            turned = replace(link, serial=turn)
            stats = open_sender(turned, 0, device).send(export()).as_dict()
        pipe.send(stats | {"cpu_s": time.process_time() - cpu})


def _receiver(link: Any, index: int, device: str, turns: int, pipe: Any) -> None:
    from dataclasses import replace

    import torch

    from nemo_rl.backends.refit.base import open_receiver

    torch.set_num_threads(1)
    for turn in range(turns):
        pipe.recv()
        cpu = time.process_time()
        with open_receiver(replace(link, serial=turn), index, device) as weights:
            for _ in weights:
                pass
        stats = weights.stats.as_dict()
        pipe.send(stats | {"cpu_s": time.process_time() - cpu})


def memcpy(nbytes: int, device: str) -> float:
    """Seconds to copy as many bytes, in pieces that were touched before."""
    import torch

    piece = 64 << 20
    source = torch.ones(piece, dtype=torch.uint8, device=device)
    target = torch.ones(piece, dtype=torch.uint8, device=device)
    # A GPU only notes down what it is to do: reading a value waits for it.
    target[0].item()
    begin = time.perf_counter()
    for start in range(0, nbytes, piece):
        size = min(piece, nbytes - start)
        target[:size].copy_(source[:size])
    target[0].item()
    return time.perf_counter() - begin


def measure(
    kind: str, size: float, tp: int, options: argparse.Namespace
) -> dict[str, Any]:
    """All turns of one key of ``NAMES``, after one to warm up."""
    from nemo_rl.backends.refit.base import RefitLink
    from nemo_rl.backends.refit.control import ControlStore

    device, transport = ("cuda", "ipc") if kind == "cuda" else ("cpu", kind)
    store, turns = ControlStore(), options.turns + 1
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        link = RefitLink(
            transport=transport,
            stages=(plan(size),),
            num_receivers=RECEIVERS,
            host=store.host,
            port=store.port,
            group=f"{os.getpid()}-{kind}-{tp}-{int(size)}.0",
            bucket_bytes=options.bucket_mib << 20,
            folder=folder,
        )
        roles = [(_sender, (link, rank, tp, device)) for rank in range(tp)]
        roles += [(_receiver, (link, index, device)) for index in range(RECEIVERS)]
        pipes, processes = [], []
        for role, args in roles:
            ours, theirs = _SPAWN.Pipe()
            process = _SPAWN.Process(target=role, args=(*args, turns, theirs))
            process.start()
            # Only the process may hold it: its end is then noticed here.
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        found = [_turn(pipes, link, device) for _ in range(turns)][1:]
        for process in processes:
            process.join()
    store.close()
    return {"link": link, "turns": found, "sending": tp}


def _turn(pipes: list[Any], link: Any, device: str) -> dict[str, Any]:
    begin = time.perf_counter()
    for pipe in pipes:
        pipe.send(None)
    stats = [pipe.recv() for pipe in pipes]
    seconds = time.perf_counter() - begin
    return {"s": seconds, "copy_s": memcpy(link.model_bytes, device), "stats": stats}


def row(name: str, result: dict[str, Any], bucket_bytes: int) -> str:
    """One line of the table."""
    turns, link, sending = result["turns"], result["link"], result["sending"]
    seconds = [turn["s"] for turn in turns]
    ratio = statistics.median(turn["s"] / turn["copy_s"] for turn in turns)
    copied = statistics.median(turn["copy_s"] for turn in turns)
    cpu = statistics.median(sum(s["cpu_s"] for s in turn["stats"]) for turn in turns)
    stats = turns[-1]["stats"]
    moved = sum(s["bytes_moved"] for s in stats[:sending])
    peaks = [
        max(s["peak_extra_bytes"] for s in turn["stats"][:sending]) for turn in turns
    ]
    gets = [
        max(s["peak_extra_bytes"] for s in turn["stats"][sending:]) for turn in turns
    ]
    held = " / ".join(
        f"{max(p) / 2**20:.0f} ({max(p) / bucket_bytes:.1f})" for p in (peaks, gets)
    )
    return (
        f"| {name} | {link.model_bytes / 1e9:.2f} GB | TP{sending} "
        f"| {moved / link.model_bytes:.4f} | {held} "
        f"| {statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f}) "
        f"| {copied:.3f} | {ratio:.1f} | {cpu:.2f} |"
    )


def page(table: list[str], options: argparse.Namespace) -> str:
    """The Markdown section."""
    return "\n".join(
        [
            "| transport | model | sent from | bytes moved / model bytes "
            "| extra MiB, sender / receiver (in buckets) | s: median (range) "
            "| s of memcpy | ratio | CPU s of all |",
            "|---|---|---|---|---|---|---|---|---|",
            *table,
            "",
            f"Two receivers, which look at nothing; buckets of {options.bucket_mib} "
            "MiB. Bytes moved are those that the sender hands out, once for all "
            "receivers, padding and headers included. The time is from the call to the "
            "last answer, the gathering of TP2's halves included; memcpy is one copy "
            "of the model's bytes inside one process, measured after each transfer. "
            "CPU seconds are of all processes together.",
            "",
            f"- Date: {datetime.date.today().isoformat()}",
            f"- Machine: {os.cpu_count()} cores, {cpu_model()}",
            f"- Versions: Python {platform.python_version()}, "
            f"torch {importlib.metadata.version('torch')}",
            f"- Turns: {options.turns}, after one to warm up",
            f"- Load average of the machine at the end: {os.getloadavg()[0]:.1f}",
            f"- Command: `python -m benchmarks.refit {' '.join(sys.argv[1:])}`",
        ]
    )


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refit")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--bucket-mib", type=int, default=32)
    parser.add_argument("--sizes", nargs="+", default=[*SIZES], choices=SIZES)
    parser.add_argument("--tp", nargs="+", type=int, default=[1, 2])
    parser.add_argument(
        "--transports", nargs="+", default=[*TRANSPORTS], choices=TRANSPORTS
    )
    parser.add_argument("--folder", default=None, help="where files are written")
    parser.add_argument("--write", action="store_true", help=f"update {PAGE.name}")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print the table, write it where asked to."""
    options = parse(argv)
    import torch

    rounds = [(kind, tp) for tp in options.tp for kind in options.transports]
    if torch.cuda.is_available():
        rounds.append(("cuda", 1))
    table = []
    for size in options.sizes:
        for kind, tp in rounds:
            result = measure(kind, SIZES[size], tp, options)
            table.append(row(NAMES[kind], result, options.bucket_mib << 20))
            print(table[-1], flush=True)
    section = page(table, options)
    print(section)
    if options.write:
        put(SECTION, TITLE, section)


if __name__ == "__main__":
    main()
