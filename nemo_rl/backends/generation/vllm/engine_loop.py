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
from nemo_rl.backends.generation.vllm.answers import checked
from nemo_rl.backends.generation.vllm.engine_config import engine_config
from nemo_rl.backends.generation.vllm.requests import (
    Outbox,
    Running,
    duplicates,
    ended_before,
    prompt_of,
    reason_of,
    sampling_arguments,
)
from nemo_rl.backends.generation.vllm.settings import VllmSettings
from nemo_rl.utils import pulse
from nemo_rl.utils.exceptions import WorkerDied

_JOIN_S = 30.0


class EngineLoop:
    """Runs an engine until ``close``.

    Args:
        settings: of the engine, and how responses are sampled.
        make_engine: makes vLLM's LLMEngine of them; called in the loop's thread.

    Attributes:
        version: of the weights; -1 while they are random.

    Raises:
        Exception: what ``make_engine`` raised.
    """

    def __init__(
        self,
        settings: VllmSettings,
        make_engine: Callable[[VllmSettings], Any] | None = None,
    ) -> None:
        self.settings = settings
        self.version = -1 if settings.load_format == "dummy" else 0
        self._commands: queue.SimpleQueue[
            tuple[Callable[[Any], Any], Future] | None
        ] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._failure: Exception | None = None
        self._outbox = Outbox()
        self._running: dict[str, Running] = {}
        self._epoch = 0
        # No step while the weights are half replaced or the memory is given away.
        self._whole, self._awake = True, True
        self._started: Future = Future()
        self._thread = threading.Thread(
            target=self._run,
            args=(make_engine or _make,),
            name="vllm-engine",
            daemon=True,
        )
        self._thread.start()
        self._started.result()

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Start responses, all before the next step.

        Raises:
            TrainingError: an id is that of a response that runs.
        """
        self._call(lambda engine: self._add_all(engine, requests))

    def collect(self, timeout_s: float) -> list[GenerationResult]:
        """Responses that have ended since the last call; waits for one at most so long.

        Raises:
            WorkerDied: the engine has ended.
        """
        return self._outbox.take(timeout_s)

    def check(self) -> None:
        """Raise if the engine has ended.

        Raises:
            WorkerDied: it has; says why.
        """
        self._outbox.check()

    def abort(self, ids: Sequence[str]) -> list[GenerationResult]:
        """End responses; what each has so far. Those that have ended are left out."""

        def end(engine: Any) -> list[GenerationResult]:
            known = [name for name in dict.fromkeys(ids) if name in self._running]
            engine.abort_request(known, internal=False)
            return [self._running.pop(name).result("abort") for name in known]

        return self._call(end)

    def rpc(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every process of the engine between two steps."""
        return self._call(
            lambda engine: checked(engine.collective_rpc(method, args=arguments))
        )

    def update(
        self, method: str, *arguments: Any, version: int, recompute: bool = False
    ) -> list[Any]:
        """As ``rpc``, with a method that replaces the weights.

        Responses that have tokens go on with their old cache unless ``recompute``;
        those that have none begin anew. If it fails, nothing is sampled until another
        update has succeeded.

        Args:
            method: of ``WorkerExtension``.
            *arguments: its arguments.
            version: of the weights, from now on part of every token.
            recompute: compute the cache of running responses anew.
        """

        def replace(engine: Any) -> list[Any]:
            self._whole = False
            reports = checked(engine.collective_rpc(method, args=arguments))
            # Without effect while responses run; what begins later has another salt.
            engine.reset_prefix_cache(reset_running_requests=recompute)
            self.version, self._whole = version, True
            self._epoch += 1
            self._begin_anew(engine)
            return reports

        return self._call(replace)

    def sleep(self) -> None:
        """Free the GPU; responses that run are kept, and go on after ``wake``."""

        def rest(engine: Any) -> None:
            self._awake = False
            engine.sleep(level=1, mode="keep")

        self._call(rest)

    def wake(self, tags: list[str] | None = None) -> None:
        """Take the GPU back, or the part of it that is named."""

        def rise(engine: Any) -> None:
            engine.wake_up(tags)
            self._awake = not engine.is_sleeping()

        self._call(rise)

    def close(self) -> None:
        """End the thread after the step that runs; the engine goes with it."""
        self._commands.put(None)
        self._thread.join(timeout=_JOIN_S)

    def _call(self, function: Callable[[Any], Any]) -> Any:
        """Run ``function(engine)`` in the loop's thread between two steps.

        Raises:
            Exception: what it raised; the engine goes on.
        """
        answer: Future = Future()
        with self._gate:
            if self._failure is not None:
                raise self._failure
            self._commands.put((function, answer))
        return answer.result()

    def _run(self, make_engine: Callable[[VllmSettings], Any]) -> None:
        try:
            engine = make_engine(self.settings)
        except BaseException as error:  # noqa: BLE001 - raised where it was asked for
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        ended = WorkerDied("the engine was shut down")
        try:
            while self._obey(engine):
                self._step(engine)
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            ended = WorkerDied(
                f"vLLM's engine ended by an error: {type(error).__name__}: {error}"
            )
            ended.__cause__ = error
        finally:
            self._end(ended)
            engine.engine_core.shutdown()

    def _obey(self, engine: Any) -> bool:
        """Run waiting commands; wait for one while nothing can run. False: the end."""
        while True:
            idle = not (self._running and self._whole and self._awake)
            try:
                command = self._commands.get(block=idle)
            except queue.Empty:
                return True
            if command is None:
                return False
            function, answer = command
            try:
                answer.set_result(function(engine))
            except Exception as error:  # noqa: BLE001 - raised where it was asked for
                answer.set_exception(error)

    def _add_all(self, engine: Any, requests: Sequence[GenerationRequest]) -> None:
        duplicates(requests, self._running)
        added: list[str] = []
        try:
            for request in requests:
                reason = ended_before(request, self.settings)
                if reason is not None:
                    self._outbox.put([Running(request).result(reason)])
                    continue
                self._add(engine, request)
                added.append(request.id)
        except BaseException:
            engine.abort_request(added, internal=False)
            for name in added:
                del self._running[name]
            raise

    def _add(self, engine: Any, request: GenerationRequest) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            **sampling_arguments(request, self.settings),
            output_kind=RequestOutputKind.DELTA,
        )
        engine.add_request(request.id, prompt_of(request, self._epoch), params)
        self._running[request.id] = Running(request)

    def _begin_anew(self, engine: Any) -> None:
        """Start those again that have no token: all of them is of the new weights."""
        fresh = [run.request for run in self._running.values() if not run.token_ids]
        engine.abort_request([request.id for request in fresh], internal=False)
        for request in fresh:
            self._add(engine, request)

    def _step(self, engine: Any) -> None:
        ended = []
        pulse.beat()
        for output in engine.step():
            running = self._running.get(output.request_id)
            if running is None:
                continue  # aborted while the step ran
            [completion] = output.outputs
            running.extend(completion, self.version)
            if output.finished:
                del self._running[output.request_id]
                ended.append(running.result(reason_of(output)))
        if ended:
            self._outbox.put(ended)

    def _end(self, failure: Exception) -> None:
        self._outbox.fail(failure)
        with self._gate:
            self._failure = failure
            while not self._commands.empty():
                command = self._commands.get()
                if command is not None:
                    command[1].set_exception(failure)


def _make(settings: VllmSettings) -> Any:
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import Executor

    config = engine_config(settings)
    return LLMEngine(
        vllm_config=config,
        executor_class=Executor.get_class(config),
        log_stats=False,
        # Whatever the process's variables say: two steps must not pass unseen.
        multiprocess_mode=False,
    )
