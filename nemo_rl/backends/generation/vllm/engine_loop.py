"""EngineLoop: one thread that steps an LLMEngine and, between two steps, obeys.

All of the engine is touched by this thread alone: requests are added, aborted and
weights replaced between two steps, so a token belongs to exactly one version of the
weights. Knows no transport and no driver.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from nemo_rl.backends.generation.base import GenerationRequest, GenerationResult
from nemo_rl.backends.generation.vllm.requests import (
    Running,
    prompt_of,
    sampling_arguments,
)
from nemo_rl.backends.generation.vllm.settings import VllmSettings


class EngineLoop:
    """Runs an engine until ``close``.

    Args:
        make_engine: makes vLLM's LLMEngine; called in the loop's thread.
        settings: how responses are sampled.

    Raises:
        Exception: what ``make_engine`` raised.
    """

    def __init__(self, make_engine: Callable[[], Any], settings: VllmSettings) -> None:
        self.settings = settings
        self.version = 0
        self._commands: queue.SimpleQueue[
            tuple[Callable[[Any], Any], Future] | None
        ] = queue.SimpleQueue()
        self._running: dict[str, Running] = {}
        self._finished: list[GenerationResult] = []
        self._news = threading.Condition()
        self._failure: BaseException | None = None
        self._started: Future = Future()
        self._thread = threading.Thread(
            target=self._run, args=(make_engine,), name="vllm-engine", daemon=True
        )
        self._thread.start()
        self._started.result()

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Start responses, all before the next step."""

        def add(engine: Any) -> None:
            for request in requests:
                self._add(engine, request)

        self.call(add)

    def collect(self, timeout_s: float) -> list[GenerationResult]:
        """Responses that have ended since the last call; waits for one at most so long.

        Raises:
            Exception: what ended the engine.
        """
        with self._news:
            self._news.wait_for(
                lambda: self._finished or self._failure is not None, timeout_s
            )
            if self._failure is not None:
                raise self._failure
            found, self._finished = self._finished, []
        return found

    def abort(self, ids: Sequence[str]) -> list[GenerationResult]:
        """End responses; what each has so far. Those that have ended are left out."""

        def end(engine: Any) -> list[GenerationResult]:
            known = [name for name in ids if name in self._running]
            engine.abort_request(known, internal=False)
            return [self._running.pop(name).result("abort") for name in known]

        return self.call(end)

    def call(self, function: Callable[[Any], Any]) -> Any:
        """Run ``function(engine)`` in the loop's thread between two steps.

        Raises:
            Exception: what it raised; the engine goes on.
        """
        if self._failure is not None:
            raise self._failure
        answer: Future = Future()
        self._commands.put((function, answer))
        return answer.result()

    def close(self) -> None:
        """End the thread after the step that runs; the engine goes with it."""
        self._commands.put(None)
        self._thread.join(timeout=30)

    def _run(self, make_engine: Callable[[], Any]) -> None:
        try:
            engine = make_engine()
        except BaseException as error:
            self._started.set_exception(error)
            raise
        self._started.set_result(None)
        try:
            while self._obey(engine):
                self._step(engine)
        except BaseException as error:  # whoever waits is told, in his own thread
            self._fail(error)
            raise
        finally:
            self._shut(engine)

    def _obey(self, engine: Any) -> bool:
        """Run waiting commands; wait for one while nothing runs. False: the end."""
        while True:
            try:
                command = self._commands.get(block=not self._running)
            except queue.Empty:
                return True
            if command is None:
                return False
            function, answer = command
            try:
                answer.set_result(function(engine))
            except Exception as error:  # noqa: BLE001 - raised where it was asked for
                answer.set_exception(error)

    def _add(self, engine: Any, request: GenerationRequest) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            **sampling_arguments(request, self.settings),
            output_kind=RequestOutputKind.DELTA,
        )
        engine.add_request(request.id, prompt_of(request, self.version), params)
        self._running[request.id] = Running(request)

    def _step(self, engine: Any) -> None:
        ended = []
        for output in engine.step():
            running = self._running.get(output.request_id)
            if running is None:
                continue  # aborted while the step ran
            [completion] = output.outputs
            running.extend(completion, self.version)
            if output.finished:
                reason = "length" if completion.finish_reason == "length" else "stop"
                ended.append(self._running.pop(output.request_id).result(reason))
        if ended:
            with self._news:
                self._finished += ended
                self._news.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._news:
            self._failure = error
            self._news.notify_all()
        while not self._commands.empty():
            command = self._commands.get()
            if command is not None:
                command[1].set_exception(error)

    def _shut(self, engine: Any) -> None:
        shutdown = getattr(engine.engine_core, "shutdown", None)
        if shutdown is not None:
            shutdown()
