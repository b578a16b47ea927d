"""What over-sampling starts, keeps and goes on with, on a stream of bigrams."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.experience.schedule import FirstToEnd
from nemo_rl.experience.tail import Answered, Limits, Tail, new_groups
from nemo_rl.experience.turnstile import Closed
from tests.fakes.tables import EOS, TableGenerator

SIZE = 6


def prompts(*last: int) -> BatchedDataDict:
    return BatchedDataDict(
        {
            "input_ids": torch.tensor([[3, token, 0] for token in last]),
            "input_lengths": torch.tensor([2] * len(last)),
            "row": [{} for _ in last],
            "idx": torch.tensor(last),
        }
    )


@pytest.fixture
def stream() -> TableGenerator:
    """After a 4 a response ends at once; after a 5 it goes on with fives."""
    table = torch.full((SIZE, SIZE), -30.0)
    table[4, EOS] = table[5, 5] = 30.0
    generator = TableGenerator(10)
    generator.update_weights({"table": table})
    return generator


def tail(stream: Any, check: Any = lambda: None, new: int = 10) -> Tail:
    return Tail(stream, Limits(new, 32), updates=lambda v: v - 1, check=check)


def test_the_unfinished_are_kept_and_go_on(stream) -> None:
    groups = new_groups(prompts(5, 4, 4), 2, lambda row: 100 + row)
    assert [r.seed for g in groups for r in g.responses] == list(range(100, 106))
    first = FirstToEnd(must=set(), wanted=2, total=3)
    one = tail(stream)
    one.renew(groups, 0)
    one.gather("0", groups, first, [0, 1, 2])
    assert (first.chosen, first.left) == ([1, 2], [0])
    assert one.counts["aborted_responses"] == 2
    begun = groups[0].responses[0]
    assert begun.reason is None and set(begun.tokens) == {5}
    assert begun.versions == [0] * len(begun.tokens)
    kept = len(begun.tokens)

    stream.update_weights({"table": stream.table}, version=2)
    both = [groups[0], *new_groups(prompts(4, 4), 2, lambda row: 200 + row)]
    first = FirstToEnd(must={0}, wanted=2, total=3)
    two = tail(stream)
    two.renew(both, 0)
    assert two.counts == {"restarted_responses": 0.0, "continued_responses": 2.0}
    two.gather("1", both, first, [1, 0, 2])
    assert first.chosen == [0, 1]
    # Ten tokens over both engines' versions; the tokens so far were sent along.
    assert begun.tokens == [5] * 10 and begun.reason == "length"
    assert begun.versions == [0] * kept + [1] * (10 - kept)
    again = [r for r in stream.submitted if r.begun_ids]
    assert all(r.begun_ids == [5] * kept and r.seed not in (100, 101) for r in again)
    assert len({r.seed for r in stream.submitted}) == len(stream.submitted)


def test_what_would_be_too_old_starts_anew(stream) -> None:
    groups = new_groups(prompts(5, 4), 1, lambda row: row)
    one = tail(stream)
    one.gather("0", groups, FirstToEnd(must=set(), wanted=1, total=2), [0, 1])
    assert groups[0].oldest == 0
    assert one.renew(groups, oldest=1) == {0, 1}
    assert one.counts == {"restarted_responses": 2.0, "continued_responses": 0.0}
    assert groups[0].responses[0].tokens == [] and groups[0].oldest is None


def test_nothing_runs_on_when_the_run_has_ended(stream) -> None:
    def check() -> None:
        raise Closed

    groups = new_groups(prompts(5), 3, lambda row: row)
    with pytest.raises(Closed):
        tail(stream, check).gather(
            "0", groups, FirstToEnd(must=set(), wanted=1, total=1), [0]
        )
    assert stream._running == {}


def test_answers_take_the_place_of_a_generator(stream) -> None:
    groups = new_groups(prompts(4, 5), 1, lambda row: row)
    tail(stream, new=4).gather(
        "0", groups, FirstToEnd(must=set(), wanted=2, total=2), [0, 1]
    )
    output = Answered([g.responses[0] for g in groups]).generate(prompts(4, 5))
    assert output["output_ids"].tolist() == [[3, 4, EOS, 0, 0, 0], [3, 5, 5, 5, 5, 5]]
    assert output["truncated"].tolist() == [False, True]
    assert output["token_versions"][0].tolist() == [-1, -1, 0, -1, -1, -1]
    assert output["unpadded_sequence_lengths"].tolist() == [3, 6]
    assert output["logprobs"][1, 2:].abs().max() < 1e-6
