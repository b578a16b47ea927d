"""Run a function on every rank of a real gloo group, in forked processes.

Forking a parent that has imported torch and megatron starts a rank in a moment. The
parent must run no autograd: a child would inherit its dead threads.
"""

from __future__ import annotations

import io
import multiprocessing
import multiprocessing.connection
import os
import traceback
from collections.abc import Callable
from typing import Any

import megatron.core  # noqa: F401 - imported once here, inherited by every rank
import torch

from nemo_rl.backends.platform import cpu_shim
from nemo_rl.distributed.rank import RankInfo, find_free_port

cpu_shim.install()
import megatron.core.models.gpt.gpt_model  # noqa: E402, F401 - as above


class RankFailure(AssertionError):
    """A rank raised or did not finish."""


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120
) -> list[Any]:
    """Call ``function(rank_info, *args)`` on every rank; results in rank order."""
    context = multiprocessing.get_context("fork")
    port = find_free_port()
    results: list[Any] = [None] * world_size
    pipes, processes = [], []
    for rank in range(world_size):
        info = RankInfo(
            rank=rank, world_size=world_size, local_rank=rank, master_port=port
        )
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_entry, args=(sender, function, info, args))
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        waiting = dict(zip(pipes, range(world_size), strict=True))
        while waiting:
            ready = multiprocessing.connection.wait(list(waiting), timeout=timeout_s)
            if not ready:
                raise RankFailure(f"ranks {sorted(waiting.values())} did not finish")
            for pipe in ready:
                rank = waiting.pop(pipe)
                try:
                    ok, value = _unpack(pipe.recv_bytes())
                except EOFError:
                    raise RankFailure(f"rank {rank} died") from None
                if not ok:
                    raise RankFailure(f"rank {rank}:\n{value}")
                results[rank] = value
    finally:
        for process in processes:
            process.kill() if process.is_alive() and waiting else None
            process.join(10)
            process.kill()
    return results


def _pack(value: Any) -> bytes:
    # torch's own pickling passes memory that dies with the rank; this copies it.
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpack(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=False)


def _entry(
    sender: Any, function: Callable[..., Any], info: RankInfo, args: Any
) -> None:
    torch.set_num_threads(1)
    try:
        answer = (True, function(info, *args))
    except BaseException:  # noqa: BLE001 - everything is reported to the parent
        answer = (False, traceback.format_exc())
    sender.send_bytes(_pack(answer))
    sender.close()
    # No interpreter shutdown: gloo's threads may be waiting for a rank that failed.
    os._exit(0)
