"""Real processes at both ends of a weight transfer, and models to send between them."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import torch

from nemo_rl.backends.refit.base import (
    RefitLink,
    TensorSpec,
    open_receiver,
    open_sender,
)
from nemo_rl.backends.refit.control import ControlStore

FORK = multiprocessing.get_context("fork")


class StoreProcess:
    """A ControlStore in a process of its own: threads and forks do not go together."""

    def __init__(self) -> None:
        self._pipe, child = FORK.Pipe()
        self._process = FORK.Process(target=_serve, args=(child,), daemon=True)
        self._process.start()
        child.close()
        self.host, self.port = self._pipe.recv()

    def abort(self, group: str, reason: str) -> None:
        """See ``ControlStore``."""
        self._pipe.send((group, reason))
        self._pipe.recv()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.join()


def _serve(pipe: Any) -> None:
    store = ControlStore()
    pipe.send((store.host, store.port))
    while True:
        pipe.send(store.abort(*pipe.recv()))


def tensors_of(specs: Any, seed: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Random tensors of a plan, different for every seed."""
    generator = torch.Generator().manual_seed(seed)
    for spec in specs:
        drawn = torch.randint(-99, 99, spec.shape, generator=generator)
        yield spec.name, drawn.to(spec.torch_dtype)


def specs_of(count: int, *, prefix: str = "w", rows: int = 50) -> tuple:
    """A plan of mixed types and sizes."""
    types = ("float32", "bfloat16", "float16", "int8")
    return tuple(
        TensorSpec(f"{prefix}{i}", types[i % 4], (rows + i, 33)[: 1 + i % 2])
        for i in range(count)
    )


def make_link(store: Any, stages: Any, **fields: Any) -> RefitLink:
    """A link with small buckets and little patience."""
    return RefitLink(
        **{
            "transport": "gloo",
            "stages": tuple(tuple(stage) for stage in stages),
            "num_receivers": 1,
            "host": store.host,
            "port": store.port,
            "group": f"{uuid.uuid4().hex[:8]}.0",
            "bucket_bytes": 1 << 14,
            "timeout_s": 20.0,
            **fields,
        }
    )


def digest(tensor: torch.Tensor) -> str:
    """Of a tensor's type, shape and bytes."""
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha1(content).hexdigest()}"


def send(link: RefitLink, index: int, seed: int = 0) -> dict[str, Any]:
    """Send a stage's random tensors; the statistics."""
    tensors = tensors_of(link.stages[index], seed)
    return open_sender(link, index).send(tensors).as_dict()


def receive(link: RefitLink, index: int) -> tuple[list[Any], dict[str, Any]]:
    """(name, digest) of what came, and the statistics."""
    with open_receiver(link, index) as weights:
        found = [(name, digest(tensor)) for name, tensor in weights]
    return found, weights.stats.as_dict()


def die(link: RefitLink, index: int, role: str, after: int = 3) -> None:
    """Take part until ``after`` tensors have passed, then be killed."""

    def cut() -> Iterator[tuple[str, torch.Tensor]]:
        for count, pair in enumerate(tensors_of(link.stages[index])):
            if count == after:
                os.kill(os.getpid(), 9)
            yield pair

    if role == "sender":
        open_sender(link, index).send(cut())
    for count, _ in enumerate(open_receiver(link, index)):
        if count == after:
            os.kill(os.getpid(), 9)


class Outcome:
    """A process running a function; ``result()`` is its value, or what it raised."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._pipe, child = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=_run, args=(child, function, args))
        self.process.start()
        child.close()
        self._begin = time.monotonic()
        self.seconds = 0.0

    def result(self, timeout_s: float = 40.0) -> Any:
        """The value; an error is returned, not raised; None for a killed process."""
        try:
            if not self._pipe.poll(timeout_s):
                raise AssertionError(f"process did not end in {timeout_s} s")
            value = self._pipe.recv()
        except EOFError:
            value = None
        finally:
            self.seconds = time.monotonic() - self._begin
            self.process.join(1)
            self.process.kill()
        return value


def _run(pipe: Any, function: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    try:
        value = function(*args)
    except Exception as error:  # noqa: BLE001 - the parent looks at it
        error.add_note(traceback.format_exc())
        value = error
    pipe.send(value)
    pipe.close()
    os._exit(0)
