"""Replica: one engine as the driver holds it; its process may die and come back.

Knows requests and results; no model, no weights: whoever made it sends them again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nemo_rl.backends.generation.base import GenerationRequest, GenerationResult
from nemo_rl.distributed.worker_groups import RayWorkerGroup
from nemo_rl.distributed.worker_shell import Place
from nemo_rl.utils.exceptions import NemoRLError, WorkerDied, WorkerError

logger = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Deaths without a response between them after which the run ends."""
_LISTEN_S = 1.0
_JOIN_S = 60.0


class Replica:
    """One engine: a worker group of one, its open requests and a thread that listens.

    A request whose engine dies is sampled again by the next one, from the same seed.
    The next one gets requests only after ``revived`` has given it the weights; until
    then new ones are kept with the open ones.

    Args:
        number: of this engine.
        start: starts the worker group.
        revived: called with the replica after its engine was started anew and before
            its requests are sent again; sends the weights.
        news: notified when a response has ended or an error has come.

    Attributes:
        error: what ended this engine for good.
        restarts: how often its process was started anew.
    """

    def __init__(
        self,
        number: int,
        start: Callable[[], RayWorkerGroup],
        *,
        revived: Callable[[Replica], None],
        news: threading.Condition,
    ) -> None:
        self.number = number
        self.error: NemoRLError | None = None
        self.restarts = 0
        self._start, self._revived, self._news = start, revived, news
        self._open: dict[str, GenerationRequest] = {}
        self._ended: dict[str, GenerationResult] = {}
        self._deaths = 0
        self._closed = False
        self._ready = True  # False from a death until the next engine can take over
        # Held while a process is replaced; never while waiting for weights.
        self._replacing = threading.Lock()
        self.group = start()
        self._thread = threading.Thread(
            target=self._listen, name=f"vllm-replica-{number}", daemon=True
        )
        self._thread.start()

    @property
    def load(self) -> int:
        """Responses under way."""
        return len(self._open)

    @property
    def place(self) -> Place:
        """Where the engine's worker runs: host, process."""
        return self.group.places[0]

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the engine's worker.

        Raises:
            WorkerDied: its process, or the engine in it, is gone.
            NemoRLError: what the method raised; the engine goes on.
        """
        return self._ask(self.group, method, *args)

    def ensure_alive(self) -> None:
        """Start the engine anew if it has died; whoever calls this sends it weights.

        Raises:
            NemoRLError: what ended the engine for good.
        """
        if self.error is not None:
            raise self.error
        group = self.group
        try:
            self._ask(group, "ping")
        except WorkerDied as death:
            self._replace(group, death)

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Start responses; the engine's death meanwhile is the listener's matter.

        Raises:
            NemoRLError: the engine refuses one of them, and has started none.
        """
        with self._news:
            if self.error is not None:
                raise self.error
            self._open |= {request.id: request for request in requests}
            self._news.notify_all()
            if not self._ready:
                return
            group = self.group
        try:
            self._ask(group, "submit", list(requests))
        except WorkerDied:
            return
        except NemoRLError:
            with self._news:
                for request in requests:
                    self._open.pop(request.id, None)
            raise

    def take(self, ids: Iterable[str]) -> list[GenerationResult]:
        """Those of the responses that have ended, each once. Call it holding ``news``.

        Raises:
            NemoRLError: what ended this engine for good.
        """
        if self.error is not None:
            raise self.error
        return [self._ended.pop(name) for name in ids if name in self._ended]

    def abort(self, ids: Sequence[str]) -> list[GenerationResult]:
        """End responses; what each has, or had when it ended.

        Those whose engine is gone have nothing.
        """
        with self._news:
            mine = [name for name in dict.fromkeys(ids) if name in self._open]
            group = self.group if self._ready else None
        partial: dict[str, GenerationResult] = {}
        if mine and group is not None:
            try:
                found = self._ask(group, "abort", mine)
                partial = {result.id: result for result in found}
            except WorkerDied:
                group = None
        with self._news:
            if group is None:
                partial = {name: _lost(name) for name in mine if name in self._open}
            for name in partial:
                self._open.pop(name, None)
            # What had ended before the abort comes by the listener.
            late = [name for name in mine if name not in partial]
            self._news.wait_for(
                lambda: (
                    all(name in self._ended for name in late)
                    or self.error is not None
                    or self._closed
                )
            )
            return [*partial.values(), *self.take(ids)]

    def close(self) -> None:
        """End the engine and the thread."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        self.group.shutdown()
        self._thread.join(timeout=_JOIN_S)

    def _ask(self, group: RayWorkerGroup, method: str, *args: Any) -> Any:
        try:
            done, answer = group.run_one(0, "attempt", method, *args)
        except WorkerError as error:  # its process cannot be used any more
            text = str(error).replace("attempt()", f"{method}()")
            raise WorkerDied(text) from error
        if done:
            return answer
        answer.args = (f"generation engine {self.number}: {answer}", *answer.args[1:])
        raise answer

    def _listen(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(
                    lambda: self._open or self._closed or not self._ready
                )
                if self._closed:
                    return
                group, ready = self.group, self._ready
            try:
                if ready:
                    self._keep(self._ask(group, "collect", _LISTEN_S))
                else:
                    self._hand_over(group)
            except NemoRLError as error:
                if not self._survives(group, error):
                    return

    def _keep(self, results: Sequence[GenerationResult]) -> None:
        with self._news:
            for result in results:
                if self._open.pop(result.id, None) is not None:
                    self._ended[result.id] = result
            if results:
                self._deaths = 0
                self._news.notify_all()

    def _hand_over(self, group: RayWorkerGroup) -> None:
        """Give an engine that was started anew the weights and all open requests."""
        self._revived(self)
        with self._news:
            again = list(self._open.values())
            # From now on new requests go to it by themselves.
            self._ready = True
        if again:
            self._ask(group, "submit", again)

    def _survives(self, group: RayWorkerGroup, error: NemoRLError) -> bool:
        """Replace an engine that died; False where this is the end."""
        if self._closed:
            return False
        try:
            if not isinstance(error, WorkerDied) or self._answers(group):
                raise error
            self._replace(group, error)
        except NemoRLError as last:
            with self._news:
                self.error = last
                self._news.notify_all()
            return False
        return True

    def _answers(self, group: RayWorkerGroup) -> bool:
        """Whether it is alive: another worker died, one that sends weights."""
        try:
            self._ask(group, "ping")
        except NemoRLError:
            return False
        return True

    def _replace(self, group: RayWorkerGroup, death: NemoRLError) -> None:
        """Start the engine anew, unless somebody has done so already.

        Raises:
            WorkerError: it died too often.
            NemoRLError: it could not be started.
        """
        with self._replacing:
            if self.group is not group:
                return
            with self._news:
                self._ready = False
            group.shutdown()
            fresh = None
            while fresh is None and not self._closed:
                self._count(death)
                try:
                    fresh = self._start()
                except WorkerDied as another:
                    death = another
            if fresh is None:
                return
            with self._news:
                self.group = fresh
                self.restarts += 1
                self._news.notify_all()
        if self._closed:
            fresh.shutdown()

    def _count(self, death: NemoRLError) -> None:
        self._deaths += 1
        if self._deaths > MAX_DEATHS:
            raise WorkerError(
                f"generation engine {self.number} died {self._deaths} times and "
                "finished no response between. If it was out of memory, lower "
                "policy.generation.vllm_cfg.gpu_memory_utilization or "
                f"policy.max_total_sequence_length. The last time: {death}"
            ) from death
        logger.warning(
            "generation engine %d died and is started again (%d of %d); its %d "
            "responses are sampled anew. %s",
            self.number,
            self._deaths,
            MAX_DEATHS,
            len(self._open),
            str(death).splitlines()[0],
        )


def _lost(name: str) -> GenerationResult:
    return GenerationResult(
        id=name, token_ids=[], logprobs=[], versions=[], finish_reason="abort"
    )
