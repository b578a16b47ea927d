"""A VLLMBackend in a forked process: engines that live at once need one each.

The parent imports vLLM once and starts no engine, so that a child has one in seconds.
"""

from __future__ import annotations

import io
import multiprocessing
import os
from typing import Any

import pytest
import torch

from nemo_rl.backends.generation.vllm.settings import VllmSettings, process_variables


def import_vllm() -> None:
    """Import it as an engine's process does, and leave this one's variables alone."""
    settings = VllmSettings(model="", dtype="float32", max_model_len=1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in process_variables(settings).items():
            patch.setenv(name, value)
        import vllm.v1.engine.llm_engine  # noqa: F401

        import nemo_rl.backends.generation.vllm.extension  # noqa: F401


class EngineProcess:
    """Has the methods of ``VLLMBackend``, and its engine's ``update``.

    Args:
        settings: of the engine.

    Raises:
        Exception: what ``VLLMBackend.setup`` raised.
    """

    def __init__(self, settings: VllmSettings) -> None:
        import_vllm()
        context = multiprocessing.get_context("fork")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, self._pipe))
        self._process.start()
        self.pid = self._process.pid
        child.close()
        try:
            self.setup(settings)
        except BaseException:
            self.end()
            raise

    def __getattr__(self, method: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._pipe.send_bytes(_pack((method, args, kwargs)))
            if not self._pipe.poll(120):
                raise AssertionError(f"{method} does not end")
            done, value = _unpack(self._pipe.recv_bytes())
            if not done:
                raise value
            return value

        return call

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(20)
        self._process.kill()


def _serve(pipe: Any, other_end: Any) -> None:
    from nemo_rl.backends.generation.vllm.backend import VLLMBackend

    other_end.close()
    torch.set_num_threads(1)
    backend = VLLMBackend()
    while True:
        try:
            method, args, kwargs = _unpack(pipe.recv_bytes())
        except EOFError:
            if hasattr(backend, "_engine"):
                backend.shutdown()
            os._exit(0)
        owner = backend._engine if method in ("update", "rpc") else backend
        try:
            answer = True, getattr(owner, method)(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - raised in the parent
            error.__cause__ = error.__traceback__ = None
            answer = False, error
        pipe.send_bytes(_pack(answer))


def _pack(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpack(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=False)
