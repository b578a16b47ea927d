"""Small named collectives over torch.distributed; in a lone process each is a no-op.

Every function here must be entered by each rank of its group, in the same order, also
by a rank that has nothing to give, or the others wait for it.
"""

from __future__ import annotations

import datetime
from typing import Any

import torch
import torch.distributed as dist

from nemo_rl.utils.exceptions import WorkerError


def is_distributed() -> bool:
    """Return whether a process group has been initialised in this process."""
    return dist.is_available() and dist.is_initialized()


def broadcast_object(
    value: Any, *, src: int = 0, group: dist.ProcessGroup | None = None
) -> Any:
    """Return the value of global rank ``src`` on every rank of the group.

    Args:
        value: What to send; ignored except on ``src``. Must be picklable.
        src: Global rank of the sender, a member of the group.
        group: Who takes part; everybody when None.
    """
    if not is_distributed():
        return value
    box = [value if dist.get_rank() == src else None]
    dist.broadcast_object_list(box, src=src, group=group)
    return box[0]


def gather_objects(value: Any, *, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return every rank's value, in rank order of the group, on every rank."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def all_reduce_sum(
    value: torch.Tensor | float, *, group: dist.ProcessGroup | None = None
) -> torch.Tensor | float:
    """Return the sum over the group, as what was given: a new tensor, or a float.

    A float travels as float64, so counts of tokens stay exact up to 2**53.
    """
    if not is_distributed():
        return value.clone() if isinstance(value, torch.Tensor) else value
    if isinstance(value, torch.Tensor):
        total = value.clone()
        dist.all_reduce(total, group=group)
        return total
    device = _reduction_device(group)
    total = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(total, group=group)
    return total.item()


def broadcast_tensors(
    tensors: list[torch.Tensor],
    *,
    src: int = 0,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Overwrite each tensor with global rank ``src``'s, in place.

    Shapes and dtypes must agree on every rank; nothing checks them.
    """
    if not is_distributed():
        return
    for tensor in tensors:
        dist.broadcast(tensor, src=src, group=group)


def barrier(
    reason: str,
    *,
    timeout_s: float = 600.0,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Wait until every rank has come here.

    Args:
        reason: What the ranks wait for; part of the error.
        timeout_s: After how long to give up, where the backend can (gloo).
        group: Who takes part; everybody when None.

    Raises:
        WorkerError: Not everybody came in time.
    """
    if not is_distributed():
        return
    if dist.get_backend(group) != "gloo":
        dist.barrier(group=group)
        return
    try:
        dist.monitored_barrier(
            group=group,
            timeout=datetime.timedelta(seconds=timeout_s),
            wait_all_ranks=True,
        )
    except RuntimeError as error:
        raise WorkerError(
            f"Not every rank reached the barrier '{reason}' within {timeout_s:g} s: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _reduction_device(group: dist.ProcessGroup | None) -> torch.device:
    if "nccl" in dist.get_backend(group):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
