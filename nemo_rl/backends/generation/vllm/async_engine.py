"""AsyncEngine: vLLM's AsyncLLM, whose core steps in a process of its own.

Does what ``EngineLoop`` does. An asyncio loop in a thread of ours speaks with the core,
which labels every step's tokens with the version of the weights; the label changes only
while the core is paused. Knows no transport and no driver.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

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

_Answer = TypeVar("_Answer")
_JOIN_S = 30.0


class AsyncEngine:
    """Runs an AsyncLLM until ``close``; see ``EngineLoop`` for its methods.

    Args:
        settings: of the engine, and how responses are sampled.

    Attributes:
        version: of the weights; -1 while they are random.

    Raises:
        ConfigurationError: vLLM refuses the settings.
        WorkerDied: the core did not start.
    """

    def __init__(self, settings: VllmSettings) -> None:
        self.settings = settings
        self.version = -1 if settings.load_format == "dummy" else 0
        self._outbox = Outbox()
        self._running: dict[str, _Response] = {}
        self._epoch, self._awake = 0, True
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="vllm-async-engine", daemon=True
        )
        self._thread.start()
        try:
            self._wait(self._start())
        except BaseException:
            self._stop_loop()
            raise

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """See ``EngineLoop.submit``."""
        self._ask(self._add_all(requests))

    def collect(self, timeout_s: float) -> list[GenerationResult]:
        """See ``EngineLoop.collect``."""
        return self._outbox.take(timeout_s)

    def check(self) -> None:
        """See ``EngineLoop.check``."""
        self._outbox.check()

    def abort(self, ids: Sequence[str]) -> list[GenerationResult]:
        """See ``EngineLoop.abort``."""
        return self._ask(self._abort(ids))

    def rpc(self, method: str, *arguments: Any) -> list[Any]:
        """See ``EngineLoop.rpc``. The core answers it between two of its steps."""
        return checked(self._ask(self._engine.collective_rpc(method, args=arguments)))

    def update(
        self, method: str, *arguments: Any, version: int, recompute: bool = False
    ) -> list[Any]:
        """See ``EngineLoop.update``."""
        return self._ask(self._update(method, arguments, version, recompute))

    def sleep(self) -> None:
        """See ``EngineLoop.sleep``."""
        self._awake = False
        self._ask(self._engine.sleep(level=1, mode="keep"))

    def wake(self, tags: list[str] | None = None) -> None:
        """See ``EngineLoop.wake``."""
        self._awake = self._ask(self._engine.wake_up(tags))

    def close(self) -> None:
        """End the core's process and the thread."""
        self._outbox.fail(WorkerDied("the engine was shut down"))
        if self._thread.is_alive():
            self._wait(self._end())
            self._stop_loop()

    def _ask(self, question: Coroutine[Any, Any, _Answer]) -> _Answer:
        """Answer it in the loop's thread.

        Raises:
            WorkerDied: the engine has ended.
            Exception: what it raised; the engine goes on.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            self._outbox.check()
        except WorkerDied:
            question.close()
            raise
        try:
            return self._wait(question)
        except EngineDeadError as error:
            self._fail(error)
            self._outbox.check()
            raise

    def _wait(self, question: Coroutine[Any, Any, _Answer]) -> _Answer:
        return asyncio.run_coroutine_threadsafe(question, self._loop).result()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=_JOIN_S)

    async def _start(self) -> None:
        from vllm.v1.engine.async_llm import AsyncLLM

        config = engine_config(self.settings)
        self._weights = asyncio.Lock()
        try:
            self._engine = AsyncLLM.from_vllm_config(config, disable_log_stats=True)
        except RuntimeError as error:
            raise WorkerDied(f"vLLM's core did not start: {error}") from error
        checked(
            await self._engine.collective_rpc("nemo_rl_die_with", args=(os.getpid(),))
        )
        await self._engine.update_weight_version(str(self.version))

    async def _end(self) -> None:
        for response in self._running.values():
            response.task.cancel()
        self._engine.shutdown(timeout=0)

    async def _add_all(self, requests: Sequence[GenerationRequest]) -> None:
        async with self._weights:
            duplicates(requests, self._running)
            added: list[str] = []
            try:
                for request in requests:
                    reason = ended_before(request, self.settings)
                    if reason is not None:
                        self._outbox.put([Running(request).result(reason)])
                        continue
                    await self._add(request)
                    added.append(request.id)
            except BaseException:
                for name in added:
                    self._running.pop(name).task.cancel()
                await self._engine.abort(added)
                raise

    async def _add(self, request: GenerationRequest) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            **sampling_arguments(request, self.settings),
            output_kind=RequestOutputKind.DELTA,
        )
        outputs = await self._engine.add_request(
            request.id, prompt_of(request, self._epoch), params
        )
        self._running[request.id] = _Response(request, outputs, self._ended)

    def _ended(self, response: _Response, failure: Exception | None) -> None:
        """A response is complete, or failed with its engine."""
        if self._running.get(response.request.id) is not response:
            return  # aborted, or begun anew
        del self._running[response.request.id]
        if failure is not None:
            self._fail(failure)
        else:
            self._outbox.put([response.result(response.reason)])

    async def _abort(self, ids: Sequence[str]) -> list[GenerationResult]:
        known = [self._running.pop(n) for n in dict.fromkeys(ids) if n in self._running]
        await self._engine.abort([response.request.id for response in known])
        await asyncio.gather(*(response.task for response in known))
        results = [response.result(response.reason) for response in known]
        # The core was faster with some; those come as if they had been left alone.
        self._outbox.put(r for r in results if r.finish_reason != "abort")
        return [r for r in results if r.finish_reason == "abort"]

    async def _update(
        self, method: str, arguments: tuple[Any, ...], version: int, recompute: bool
    ) -> list[Any]:
        async with self._weights:
            # Where it fails it stays paused: nothing is sampled from half of them.
            await self._engine.pause_generation(mode="keep", clear_cache=False)
            reports = await self._engine.collective_rpc(method, args=arguments)
            checked(reports)
            await self._engine.reset_prefix_cache(reset_running_requests=recompute)
            await self._engine.update_weight_version(str(version))
            self.version = version
            self._epoch += 1
            await self._begin_anew()
            if self._awake:
                await self._engine.resume_generation()
        return reports

    async def _begin_anew(self) -> None:
        fresh = [run for run in self._running.values() if not run.token_ids]
        for response in fresh:
            del self._running[response.request.id]
        await self._engine.abort([response.request.id for response in fresh])
        for response in fresh:
            await self._add(response.request)

    def _fail(self, error: Exception) -> None:
        failure = WorkerDied(
            f"vLLM's core ended: {type(error).__name__}: {error}; see its log"
        )
        failure.__cause__ = error
        self._outbox.fail(failure)


class _Response(Running):
    """A response that runs, and the task that listens to it.

    Args:
        request: what was asked for.
        outputs: where vLLM puts its tokens.
        ended: called when nothing comes any more.
    """

    def __init__(
        self,
        request: GenerationRequest,
        outputs: Any,
        ended: Callable[[_Response, Exception | None], None],
    ) -> None:
        super().__init__(request)
        self.reason = "abort"
        self.task = asyncio.create_task(self._listen(outputs, ended))

    async def _listen(self, outputs: Any, ended: Callable[..., None]) -> None:
        failure: Exception | None = None
        try:
            while True:
                output = outputs.get_nowait() or await outputs.get()
                pulse.beat()
                [completion] = output.outputs
                # The core's labels come with the last output.
                self.extend(completion, -1)
                if output.finished:
                    break
            self.versions = versions_of(completion.weight_versions, len(self.token_ids))
            self.reason = reason_of(output)
        except Exception as error:  # noqa: BLE001 - ends the engine
            failure = error
        ended(self, failure)


def versions_of(spans: Sequence[Any] | None, tokens: int) -> list[int]:
    """The version of each token, from vLLM's spans ``(version, start, end)``.

    Raises:
        ValueError: they do not cover the tokens.
    """
    versions = [
        int(span.version) for span in spans or () for _ in range(span.start, span.end)
    ]
    if len(versions) != tokens:
        raise ValueError(
            f"vLLM labelled {len(versions)} of {tokens} tokens with a weight version"
        )
    return versions
