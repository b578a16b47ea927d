"""Replica: one engine as the driver holds it; its process may die and come back.

Knows requests and results; no model, no weights: whoever made it sends them again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from nemo_rl.backends.generation.base import GenerationRequest, GenerationResult
from nemo_rl.distributed.interfaces import WorkerGroup
from nemo_rl.utils.exceptions import NemoRLError, WorkerDied, WorkerError

logger = logging.getLogger(__name__)

MAX_DEATHS = 3
"""Deaths without a response between them after which the run ends."""
_LISTEN_S = 1.0


class Replica:
    """One engine: a worker group of one, its open requests and a thread that listens.

    A request whose engine dies is sampled again by the next one, from the same seed.

    Args:
        number: of this engine.
        start: starts the worker group.
        revived: called with the replica after its engine was started anew and before
            its requests are sent again; sends the weights.
        news: notified when a response has ended or an error has come.
    """

    def __init__(
        self,
        number: int,
        start: Callable[[], WorkerGroup],
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
        self.group = start()
        self._thread = threading.Thread(
            target=self._listen, name=f"vllm-replica-{number}", daemon=True
        )
        self._thread.start()

    @property
    def load(self) -> int:
        """Responses under way."""
        return len(self._open)

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the engine's worker."""
        return self.group.run_one(0, method, *args)

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Start responses; the engine's death meanwhile is the listener's matter."""
        group = self.group
        with self._news:
            self._open |= {request.id: request for request in requests}
            self._news.notify_all()
        try:
            group.run_one(0, "submit", list(requests))
        except WorkerError as error:
            if group is self.group and not isinstance(error, WorkerDied):
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
        """End responses; what each has, or had when it ended."""
        mine = [name for name in ids if name in self._open]
        partial = {result.id: result for result in self.call("abort", mine)}
        with self._news:
            for name in mine:
                if name in partial:
                    self._open.pop(name, None)
            # What had ended before the abort comes by the listener.
            late = [name for name in mine if name not in partial]
            self._news.wait_for(
                lambda: (
                    all(name in self._ended for name in late) or self.error is not None
                )
            )
            return [*partial.values(), *self.take(ids)]

    def close(self) -> None:
        """End the engine and the thread."""
        with self._news:
            self._closed = True
            self._news.notify_all()
        self.group.shutdown()
        self._thread.join(timeout=5)

    def _listen(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._open or self._closed)
                if self._closed:
                    return
            try:
                found = self.group.run_one(0, "collect", _LISTEN_S)
            except NemoRLError as error:
                if self._closed:
                    return
                self._recover(error)
                if self.error is not None:
                    return
                continue
            with self._news:
                for result in found:
                    if self._open.pop(result.id, None) is not None:
                        self._ended[result.id] = result
                if found:
                    self._deaths = 0
                    self._news.notify_all()

    def _recover(self, error: NemoRLError) -> None:
        """Start the engine anew; keep the error if it makes no sense to."""
        self._deaths += 1
        if not isinstance(error, WorkerDied) or self._deaths > MAX_DEATHS:
            self._give_up(error)
            return
        logger.warning(
            "generation engine %d died and is started again (%d of %d); its %d "
            "responses are sampled anew. %s",
            self.number,
            self._deaths,
            MAX_DEATHS,
            len(self._open),
            str(error).splitlines()[0],
        )
        try:
            self.group.shutdown()
            self.group = self._start()
            self.restarts += 1
            self._revived(self)
            with self._news:
                again = list(self._open.values())
            self.group.run_one(0, "submit", again)
        except WorkerDied as another:
            self._recover(another)
        except NemoRLError as another:
            self._give_up(another)

    def _give_up(self, error: NemoRLError) -> None:
        with self._news:
            self.error = error
            self._news.notify_all()
