"""Mixtures: shares, repeats, an order of their own, and rows that keep their place."""

from collections import Counter

import pytest

from nemo_rl.data.datasets import mixture as module
from nemo_rl.data.datasets.mixture import MixtureDataset, Source
from nemo_rl.utils.exceptions import DataError


def source(name, count, weight=None):
    return Source(name, [{"prompt": f"{name}{i}"} for i in range(count)], weight)


def prompts(mixture):
    return [mixture[i]["prompt"] for i in range(len(mixture))]


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [
        ((30, 30), (1, 1), [30, 30]),
        ((30, 10), (1, 1), [30, 30]),
        ((30, 10), (3, 1), [30, 10]),
        ((30, 10), (1, 3), [30, 90]),
        ((100, 7, 3), (0.5, 0.3, 0.2), [100, 60, 40]),
        ((30, 10), (None, None), [30, 10]),
        ((7,), (5.0,), [7]),
    ],
)
def test_weights_are_shares_of_an_epoch(sizes, weights, counts):
    pairs = zip(sizes, weights, strict=True)
    parts = [source("abc"[i], n, w) for i, (n, w) in enumerate(pairs)]
    mixture = MixtureDataset(parts)
    assert mixture.counts == counts and len(mixture) == sum(counts)
    seen = Counter(prompts(mixture))
    for part, count in zip(parts, counts, strict=True):
        times = {seen[row["prompt"]] for row in part.rows}
        # Every row as often as any other, or once more; none is left out.
        assert min(times) >= 1 and max(times) - min(times) <= 1
        assert sum(seen[row["prompt"]] for row in part.rows) == count
    shares = [line["share"] for line in mixture.describe()]
    assert shares == [count / sum(counts) for count in counts]


def test_the_order_is_its_own_and_alternates():
    parts = [source("a", 200, 1), source("b", 200, 1)]
    first = prompts(MixtureDataset(parts, seed=1))
    assert first == prompts(MixtureDataset(parts, seed=1))
    assert first != prompts(MixtureDataset(parts, seed=2))
    assert first[:50] != sorted(first[:50])
    for start in range(0, 400, 100):
        share = sum(p[0] == "a" for p in first[start : start + 100])
        assert 25 < share < 75


def test_a_row_says_where_it_stands():
    class Lines(list):
        def describe_row(self, idx):
            return f"a.jsonl, line {idx + 1}"

    mixture = MixtureDataset([Source("data.mixture[0] (a)", Lines([{"n": 0}]))])
    assert mixture.describe_row(0) == "data.mixture[0] (a): a.jsonl, line 1"
    assert mixture.describe() == [
        {"name": "data.mixture[0] (a)", "rows": 1, "samples": 1, "share": 1.0}
    ]


def test_the_environment_that_all_sources_name():
    class Graded(list):
        default_environment = "exact_match"

    graded = Source("a", Graded([1]))
    assert MixtureDataset([graded, graded]).default_environment == "exact_match"
    assert MixtureDataset([graded, source("b", 1)]).default_environment is None


def test_impossible_mixtures(monkeypatch):
    with pytest.raises(DataError, match="at least one"):
        MixtureDataset([])
    with pytest.raises(DataError, match="b has the weight 0: not above 0"):
        MixtureDataset([source("a", 1, 1), source("b", 1, 0)])
    with pytest.raises(DataError, match="a weight, or none"):
        MixtureDataset([source("a", 1, 1), source("b", 1)])
    monkeypatch.setattr(module, "MAX_ROWS", 100)
    with pytest.raises(DataError, match="a has 20 rows and the share 0.1, .*200 rows"):
        MixtureDataset([source("a", 20, 1), source("b", 20, 9)])
