"""Locks between threads that sample and one that trains; version numbers."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.experience.schedule import AheadOptions, Schedule
from nemo_rl.experience.turnstile import (
    Closed,
    InOrder,
    SharedGenerator,
    Turnstile,
    Versions,
)


def turnstile(**options) -> Turnstile:
    return Turnstile(Schedule(AheadOptions(**options), total=9))


class Slow:
    """Generates until so many do at once, or for a moment; knows the most."""

    version = 3

    def __init__(self, stream=None, together: int = 2) -> None:
        self.stream, self.together = stream, together
        self.inside, self.most = 0, 0
        self.changed = threading.Condition()

    def generate(self, data, greedy):
        with self.changed:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.changed.notify_all()
            moment = 10 if self.stream else 0.05
            self.changed.wait_for(lambda: self.most >= self.together, moment)
            self.inside -= 1
        ids = data["input_ids"]
        return BatchedDataDict({"output_ids": ids, "greedy": [greedy] * len(ids)})


PROMPTS = BatchedDataDict({"input_ids": torch.tensor([[1, 2], [3, 4], [5, 6]])})


@pytest.mark.parametrize(("stream", "most"), [(None, 1), (object(), 3)])
def test_generation_overlaps_where_the_generator_can(stream, most) -> None:
    gate, slow = turnstile(), Slow(stream, together=3)
    generator = SharedGenerator(slow, gate)

    def work() -> None:
        with gate.turn:
            generator.generate(PROMPTS)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert slow.most == most
    assert gate.schedule.generating == 0 and not gate.turn.locked()


def test_a_generator_that_tells_no_versions_has_one() -> None:
    gate = turnstile()
    with gate.turn:
        output = SharedGenerator(Slow(), gate).generate(PROMPTS, True)
    assert output["token_versions"].tolist() == [[3, 3]] * 3
    assert output["greedy"] == [True] * 3


def test_an_update_waits_for_the_end_and_holds_up_the_next() -> None:
    gate, order = turnstile(), []
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with gate.turn, gate.generating():
            inside.set()
            leave.wait(10)
            order.append("first")

    def second() -> None:
        with gate.turn, gate.generating():
            order.append("second")

    one = threading.Thread(target=first)
    one.start()
    inside.wait(10)
    with gate.changed:
        gate.schedule.update_wanted = True
        assert not gate.schedule.may_update()
    two = threading.Thread(target=second)
    two.start()
    leave.set()
    with gate.changed:
        gate.wait_for(gate.schedule.may_update)
        order.append("update")
        gate.schedule.update()
        gate.changed.notify_all()
    one.join(10)
    two.join(10)
    assert order == ["first", "update", "second"]


def test_failure_and_end_wake_whoever_waits() -> None:
    for end, error in (
        (lambda gate: gate.fail(KeyError("x")), KeyError),
        (lambda gate: gate.close(), Closed),
    ):
        gate, seen = turnstile(), []

        def wait(gate=gate, seen=seen) -> None:
            with gate.changed:
                try:
                    gate.wait_for(lambda: False)
                except (KeyError, Closed) as found:
                    seen.append(type(found))

        thread = threading.Thread(target=wait)
        thread.start()
        end(gate)
        thread.join(10)
        assert seen == [error]


def test_idle_time_is_what_nobody_generates_in() -> None:
    gate = turnstile()
    time.sleep(0.05)
    assert gate.take_idle_s() >= 0.05
    with gate.turn, gate.generating():
        gate.take_idle_s()
        time.sleep(0.05)
        assert gate.take_idle_s() == 0


def test_transfers_are_counted_as_updates() -> None:
    versions = Versions()
    versions.note(2, 10)
    # Sent twice, because the first was found to be wrong.
    versions.note(4, 11)
    assert [versions.updates(n) for n in (1, 2, 3, 4, 5)] == [10, 10, 11, 11, 12]
    column = torch.tensor([[-1, 2, 4], [-1, 5, -1]])
    assert versions.of(column).tolist() == [[-1, 10, 11], [-1, 12, -1]]


def test_rows_go_in_another_order_and_come_back_in_theirs() -> None:
    seen = []

    class Generator:
        def generate(self, data, greedy):
            seen.append(data["input_ids"][:, 0].tolist())
            return {"output_ids": data["input_ids"] * 10}

    ordered = InOrder(Generator(), [2, 0, 1])
    output = ordered.generate(PROMPTS)
    assert seen == [[5, 1, 3]]
    assert torch.equal(output["output_ids"], PROMPTS["input_ids"] * 10)
    fewer = PROMPTS.slice(0, 2)
    assert torch.equal(ordered.generate(fewer)["output_ids"], fewer["input_ids"] * 10)
