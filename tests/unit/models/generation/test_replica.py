"""One engine as the driver holds it: its process dies, comes back, dies for good."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_rl.backends.generation.base import GenerationRequest, GenerationResult
from nemo_rl.models.generation.replica import MAX_DEATHS, Replica
from nemo_rl.utils.exceptions import ConfigurationError, WorkerDied, WorkerError


def request(name: str) -> GenerationRequest:
    return GenerationRequest(id=name, prompt_ids=[1], seed=0, max_new_tokens=2)


def result(name: str, reason: str = "stop") -> GenerationResult:
    return GenerationResult(
        id=name, token_ids=[2], logprobs=[-1.0], versions=[0], finish_reason=reason
    )


class Engine:
    """The worker group of one engine that is told what to do."""

    def __init__(self, *, dies: bool = False, refuses: bool = False) -> None:
        self.dies, self.refuses, self.ended = dies, refuses, False
        self.submitted: list[str] = []
        self.done: list[GenerationResult] = []
        self.places = [SimpleNamespace(host="here", pid=1)]

    def run_one(self, rank: int, name: str, method: str, *args: Any) -> Any:
        assert (rank, name) == (0, "attempt")
        if self.dies or self.ended:
            time.sleep(0.002)
            raise WorkerDied("gone")
        return True, getattr(self, method)(*args)

    def submit(self, requests: list[GenerationRequest]) -> None:
        if self.refuses:
            raise ConfigurationError("no")
        self.submitted += [r.id for r in requests]

    def collect(self, timeout_s: float) -> list[GenerationResult]:
        time.sleep(0.002)
        found, self.done = self.done, []
        return found

    def abort(self, ids: list[str]) -> list[GenerationResult]:
        return [result(name, "abort") for name in ids]

    def ping(self) -> int:
        return 0

    def shutdown(self) -> None:
        self.ended = True


class Held:
    """A replica, the engines it was given one after the other, and who was told."""

    def __init__(self, *engines: Engine) -> None:
        self.engines, self._next = engines, iter(engines)
        self.news, self.revived = threading.Condition(), 0
        self.replica: Any = Replica(
            3, lambda: next(self._next), revived=self._revive, news=self.news
        )

    def _revive(self, replica: Replica) -> None:
        assert replica is self.replica
        self.revived += 1

    def take(self, *ids: str, timeout_s: float = 5.0) -> list[GenerationResult]:
        found: list[GenerationResult] = []
        deadline = time.monotonic() + timeout_s
        with self.news:
            while len(found) < len(ids) and time.monotonic() < deadline:
                found += self.replica.take(ids)
                self.news.wait(0.01)
        return found


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch):
    made: list[Held] = []

    def make(*engines: Engine) -> Held:
        made.append(Held(*engines))
        return made[-1]

    yield make
    for one in made:
        one.replica.close()


def test_a_response_is_given_once(held) -> None:
    one = held(Engine())
    one.replica.submit([request("a"), request("b")])
    assert one.replica.load == 2
    one.engines[0].done = [result("b"), result("unknown")]
    assert [r.id for r in one.take("a", "b", timeout_s=0.3)] == ["b"]
    assert one.take("b", timeout_s=0.05) == [] and one.replica.load == 1


def test_the_next_engine_gets_the_weights_and_what_is_open(held) -> None:
    one = held(Engine(), Engine())
    first, second = one.engines
    one.replica.submit([request("a"), request("b")])
    first.done = [result("a")]
    assert one.take("a")
    first.dies = True
    second.done = [result("b")]
    assert [r.id for r in one.take("b")] == ["b"]
    assert (one.revived, one.replica.restarts, first.ended) == (1, 1, True)
    assert second.submitted == ["b"]


def test_requests_meanwhile_wait_for_the_next_engine(held) -> None:
    one = held(Engine(dies=True), Engine())
    one.replica.submit([request("a")])
    one.replica.submit([request("b")])
    one.engines[1].done = [result("a"), result("b")]
    assert {r.id for r in one.take("a", "b")} == {"a", "b"}
    assert sorted(one.engines[1].submitted) == ["a", "b"]


def test_death_after_death_is_the_end(held) -> None:
    one = held(*(Engine(dies=True) for _ in range(MAX_DEATHS + 1)))
    one.replica.submit([request("a")])
    with pytest.raises(WorkerError, match=f"3 died {MAX_DEATHS + 1} times"):
        one.take("a")
    with pytest.raises(WorkerError, match="finished no response between"):
        one.replica.ensure_alive()


def test_an_engine_that_died_unnoticed_is_started_anew(held) -> None:
    one = held(Engine(dies=True), Engine())
    one.replica.ensure_alive()
    assert one.replica.restarts == 1
    one.replica.ensure_alive()
    assert one.replica.restarts == 1


def test_what_an_engine_refuses_is_not_kept(held) -> None:
    one = held(Engine(refuses=True))
    with pytest.raises(ConfigurationError, match="no"):
        one.replica.submit([request("a")])
    assert one.replica.load == 0


def test_an_aborted_response_is_what_there_is(held) -> None:
    one = held(Engine())
    one.replica.submit([request("a")])
    [partial] = one.replica.abort(["a", "unknown"])
    assert (partial.id, partial.finish_reason) == ("a", "abort")
    assert one.replica.load == 0
