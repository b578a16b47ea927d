"""Buckets in the memory of a GPU that several processes map (CUDA IPC).

For receivers that see the sender's GPU, as those that take turns on it do. torch's own
way of sharing a tensor between processes is used; only plain values of it travel.
"""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import rebuild_cuda_tensor, reduce_tensor

from nemo_rl.backends.refit.buckets import Bucket
from nemo_rl.backends.refit.control import Connection
from nemo_rl.backends.refit.handshake import Announcer
from nemo_rl.utils.exceptions import RefitError

_BYTES = ("handle", "ref_counter_handle", "event_handle")
_NUMBERS = (
    "storage_size_bytes",
    "storage_offset_bytes",
    "ref_counter_offset",
    "event_sync_required",
)
_ORDER = (
    "handle",
    "storage_size_bytes",
    "storage_offset_bytes",
    "requires_grad",
    "ref_counter_handle",
    "ref_counter_offset",
    "event_handle",
    "event_sync_required",
)
"""What torch's reduction of a CUDA tensor has behind the device."""


def gpu_id(device: torch.device) -> str:
    """The GPU's own id, the same in every process."""
    return str(torch.cuda.get_device_properties(device).uuid)


class CudaOutlet:
    """Sends through memory of this GPU; see ``stream.Outlet``."""

    medium = "CUDA IPC"

    def __init__(self, connection: Connection, device: torch.device) -> None:
        self._announcer, self._device = Announcer(connection), device
        self._receivers = connection.link.num_receivers
        self._places: list[Tensor | None] = [None, None]
        self._handles: list[list[dict[str, Any]]] = [[], []]
        self._under_way: list[Bucket | None] = [None, None]
        self.peak_bytes = 0

    def buffer(self, bucket: Bucket) -> Tensor:
        """See ``stream.Outlet``."""
        turn = bucket.index % 2
        self._await(turn)
        place = self._places[turn]
        if place is None or place.numel() < bucket.nbytes:
            place = self._places[turn] = None
            place = torch.empty(bucket.nbytes, dtype=torch.uint8, device=self._device)
            self._places[turn] = place
            # One for each: torch counts the readers of a handle down from one.
            count = self._receivers
            self._handles[turn] = [_handle(place) for _ in range(count)]
            total = sum(p.numel() for p in self._places if p is not None)
            self.peak_bytes = max(self.peak_bytes, total)
        return place[: bucket.nbytes]

    def publish(self, bucket: Bucket, buffer: Tensor) -> None:
        """See ``stream.Outlet``."""
        turn = bucket.index % 2
        torch.cuda.current_stream(self._device).synchronize()
        self._under_way[turn] = bucket
        gpu = gpu_id(self._device)
        handles = self._handles[turn]
        self._announcer.announce(bucket, place=turn, gpu=gpu, handles=handles)

    def finish(self) -> None:
        """See ``stream.Outlet``."""
        self._await(0)
        self._await(1)

    def close(self) -> None:
        """See ``stream.Outlet``."""
        self._places = [None, None]
        torch.cuda.ipc_collect()

    def _await(self, turn: int) -> None:
        bucket, self._under_way[turn] = self._under_way[turn], None
        if bucket is not None:
            self._announcer.await_copies(bucket)


class MappedGpu:
    """The sender's memory, as a receiver sees it.

    Args:
        receiver: which receiver this is.
    """

    medium = CudaOutlet.medium

    def __init__(self, receiver: int) -> None:
        self._receiver = receiver
        self._places: dict[int, tuple[Any, Tensor]] = {}

    def memory(self, facts: dict[str, Any], nbytes: int) -> Tensor:
        """uint8 [nbytes] of the place that was announced.

        Raises:
            RefitError: this process does not see the GPU.
        """
        place, handle = facts["place"], facts["handles"][self._receiver]
        known = self._places.get(place)
        if known is None or known[0] != handle:
            self._places.pop(place, None)
            known = self._places[place] = handle, _open(facts["gpu"], handle)
        return known[1][:nbytes]

    def close(self) -> None:
        """Unmap it."""
        self._places.clear()


def _handle(tensor: Tensor) -> dict[str, Any]:
    _, arguments = reduce_tensor(tensor)
    values = dict(zip(_ORDER, arguments[-len(_ORDER) :], strict=True))
    plain = {name: base64.b64encode(values[name]).decode() for name in _BYTES}
    numbers = {name: int(values[name]) for name in _NUMBERS}
    return {**plain, **numbers, "elements": tensor.numel()}


def _open(gpu: str, handle: dict[str, Any]) -> Tensor:
    count = torch.cuda.device_count()
    seen = {gpu_id(torch.device("cuda", i)): i for i in range(count)}
    if gpu not in seen:
        raise RefitError(
            f"the trainer shares memory of GPU {handle['gpu']}, and this process sees "
            f"only {', '.join(seen) or 'none'}: set "
            "policy.generation.refit.transport to gloo, or let it see that GPU."
        )
    values = {name: base64.b64decode(handle[name]) for name in _BYTES}
    return rebuild_cuda_tensor(
        Tensor,
        (handle["elements"],),
        (1,),
        0,
        torch.storage.TypedStorage,
        torch.uint8,
        seen[gpu],
        values["handle"],
        handle["storage_size_bytes"],
        handle["storage_offset_bytes"],
        False,
        values["ref_counter_handle"],
        handle["ref_counter_offset"],
        values["event_handle"],
        bool(handle["event_sync_required"]),
    )
