"""The schedule alone: random events, and never an older token than allowed."""

from __future__ import annotations

import random

import pytest

from nemo_rl.experience.schedule import (
    AheadOptions,
    FirstToEnd,
    LengthBook,
    Schedule,
)
from nemo_rl.utils.exceptions import TrainingError


def walk(schedule: Schedule, moves: random.Random) -> list[tuple[int, int]]:
    """Do what is allowed in random order; (batch, its oldest version) as consumed."""
    begun: dict[int, int] = {}
    consumed: list[tuple[int, int]] = []
    trained = False
    while len(consumed) < schedule.total or trained:
        options = []
        if schedule.may_start():
            options.append("start")
        options += [("finish", n) for n in sorted(schedule.running)]
        if not trained and schedule.consumed in schedule.finished:
            options.append("consume")
        if trained:
            schedule.update_wanted = True
            # Whole batches are one generation here.
            schedule.generating = len(schedule.running)
            if schedule.may_update():
                options.append("update")
        assert options, "nothing can happen any more"
        match moves.choice(options):
            case "start":
                number = schedule.start()
                begun[number] = schedule.version
            case ("finish", number):
                schedule.finish(number)
            case "consume":
                number = schedule.consumed
                schedule.consume(number)
                schedule.check_versions(number, begun[number], schedule.version)
                consumed.append((number, begun[number]))
                trained = True
            case "update":
                schedule.update()
                trained = False
    return consumed


@pytest.mark.parametrize("staleness", [0, 1, 2, 5])
@pytest.mark.parametrize("in_flight", [False, True])
def test_random_events_never_exceed_the_bound(staleness, in_flight) -> None:
    reached = 0
    for seed in range(60):
        options = AheadOptions(max_staleness=staleness, in_flight=in_flight)
        schedule = Schedule(options, total=12)
        consumed = walk(schedule, random.Random(seed))
        assert [number for number, _ in consumed] == list(range(12))
        ages = [number - version for number, version in consumed]
        assert 0 <= min(ages) <= max(ages) <= staleness
        reached = max(reached, *ages)
    assert reached == staleness


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_deterministic_means_one_version_for_each_batch(staleness) -> None:
    options = AheadOptions(max_staleness=staleness, deterministic=True)
    for seed in range(40):
        consumed = walk(Schedule(options, total=9), random.Random(seed))
        assert [version for _, version in consumed] == [
            max(0, number - staleness) for number in range(9)
        ]


def test_over_sampling_runs_one_batch_at_a_time_and_leaves_time_for_the_rest() -> None:
    schedule = Schedule(AheadOptions(max_staleness=2, over_sampling=1.5), total=9)
    for number in range(2):
        assert schedule.start() == number
        assert not schedule.may_start()
        schedule.finish(number)
    # What batch 2 begins at version 0 could not go on in batch 3.
    assert not schedule.may_start()
    schedule.consume(0)
    schedule.update()
    assert schedule.start() == 2
    assert [schedule.must_end(2, version) for version in (None, 0, 1, 2)] == [
        False,
        True,
        False,
        False,
    ]
    none = Schedule(AheadOptions(max_staleness=0, over_sampling=1.5), total=9)
    assert none.start() == 0 and not none.must_end(0, None)


def test_it_goes_on_from_a_version() -> None:
    schedule = Schedule(AheadOptions(max_staleness=1), total=9, version=4)
    assert [schedule.start(), schedule.start()] == [4, 5]
    with pytest.raises(TrainingError, match="batch 6 cannot be started at version 4"):
        schedule.start()
    with pytest.raises(TrainingError, match="batch 5 cannot be trained on: next is 4"):
        schedule.consume(5)


def test_versions_that_cannot_be_are_an_error() -> None:
    schedule = Schedule(AheadOptions(max_staleness=2), total=9)
    schedule.check_versions(5, 3, 5)
    for oldest, newest in ((2, 5), (4, 6), (-1, 4)):
        with pytest.raises(TrainingError, match="told wrong versions"):
            schedule.check_versions(5, oldest, newest)


def test_a_waiting_update_lets_no_response_start_but_those_of_whole_batches() -> None:
    for options, may in (
        (AheadOptions(), False),
        (AheadOptions(in_flight=True), True),
        (AheadOptions(deterministic=True), True),
    ):
        schedule = Schedule(options, total=9)
        schedule.update_wanted = True
        assert schedule.may_generate() == may


def test_the_first_to_end_and_everyone_that_waited() -> None:
    for seed in range(50):
        order = list(range(8))
        random.Random(seed).shuffle(order)
        first = FirstToEnd(must={0, 1}, wanted=5, total=8)
        ended = 0
        while not first.full:
            first.end(order[ended])
            ended += 1
        chosen, left = first.chosen, first.left
        assert {0, 1} <= set(chosen) and len(chosen) == 5
        assert sorted(chosen + left) == list(range(8))
        others = [group for group in order if group > 1]
        assert set(chosen) == {0, 1, *others[:3]}
    with pytest.raises(TrainingError, match="3 groups are under way, 4 are wanted"):
        FirstToEnd(must=set(), wanted=4, total=3)


def test_lengths_are_expected_as_they_were() -> None:
    book = LengthBook()
    assert book.longest_first([3, 1, 2]) == [0, 1, 2]
    book.observe([1, 1, 2, 3], [10, 20, 4, 100])
    assert book.expected(1) == 15 and book.expected(9) == 33.5
    assert book.longest_first([1, 2, 9, 3, 9]) == [3, 2, 4, 0, 1]
    again = LengthBook(book.state())
    again.observe([2], [8])
    assert (again.expected(2), book.expected(2)) == (6, 4)
