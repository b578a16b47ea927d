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
        self._closed = self._recovering = False
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

    @property
    def place(self) -> Place:
        """Where the engine's worker runs: host, process."""
        return self.group.places[0]

    def ensure_alive(self) -> None:
        """Wait until the engine runs; start it anew if it died unnoticed.

        Whoever calls this sends it the weights afterwards.

        Raises:
            NemoRLError: what ended the engine for good.
        """
        while True:
            with self._news:
                self._news.wait_for(lambda: not self._recovering or self.error)
                if self.error is not None:
                    raise self.error
                group = self.group
            try:
                group.run_one(0, "ping")
                return
            except WorkerError as error:
                with self._news:
                    if self._open or self.group is not group:
                        # The listener sees to it; look again when it has.
                        self._news.wait(_LISTEN_S)
                        continue
                    self._recovering = True
                self._restart(error)
                with self._news:
                    self._recovering = False
                    self._news.notify_all()

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Start responses; the engine's death meanwhile is the listener's matter."""
        with self._news:
            self._open |= {request.id: request for request in requests}
            self._news.notify_all()
            if self._recovering:
                return  # what is open is sent to the next engine
            group = self.group
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
                self._news.wait_for(
                    lambda: (self._open and not self._recovering) or self._closed
                )
                if self._closed:
                    return
                group = self.group
            try:
                found = group.run_one(0, "collect", _LISTEN_S)
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
        """Start the engine anew and send it what is open; or keep the error."""
        with self._news:
            self._recovering = True
        if not self._restart(error):
            return
        try:
            self._revived(self)
            with self._news:
                again = list(self._open.values())
                self._recovering = False
                self._news.notify_all()
            self.group.run_one(0, "submit", again)
        except WorkerDied as another:
            self._recover(another)
        except NemoRLError as another:
            self._give_up(another)

    def _restart(self, error: NemoRLError) -> bool:
        """Start the engine's process anew; False if it makes no sense to."""
        self._deaths += 1
        if not isinstance(error, WorkerDied) or self._deaths > MAX_DEATHS:
            self._give_up(error)
            return False
        logger.warning(
            "generation engine %d died and is started again (%d of %d); its %d "
            "responses are sampled anew. %s",
            self.number,
            self._deaths,
            MAX_DEATHS,
            len(self._open),
            str(error).splitlines()[0],
        )
        self.group.shutdown()
        try:
            group = self._start()
        except NemoRLError as another:
            self._give_up(another)
            return False
        with self._news:
            self.group = group
            self.restarts += 1
            self._news.notify_all()
        return True

    def _give_up(self, error: NemoRLError) -> None:
        with self._news:
            self.error, self._recovering = error, False
            self._news.notify_all()
