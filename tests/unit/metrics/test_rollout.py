"""Rollout metrics and pass@k against numbers computed by hand."""

from __future__ import annotations

import itertools

import pytest

from nemo_rl.metrics.rollout import group_pass_at_k, pass_at_k, rollout_metrics


def test_metrics_of_two_prompts():
    metrics = rollout_metrics(
        [1.0, 0.0, 1.0, 1.0],
        response_lengths=[2, 4, 6, 8],
        truncated=[False, True, False, False],
        group=[3, 3, 9, 9],
    )
    assert metrics == {
        "reward": 0.75,
        "reward_std": pytest.approx(0.4330127),
        "reward_min": 0.0,
        "reward_max": 1.0,
        "response_length": 5.0,
        "response_length_min": 2.0,
        "response_length_max": 8.0,
        "truncated_fraction": 0.25,
        "unanimous_fraction": 0.5,
        "num_completions": 4.0,
    }


def test_tensors_are_accepted():
    torch = pytest.importorskip("torch")
    metrics = rollout_metrics(
        torch.tensor([0.5, 0.25]),
        response_lengths=torch.tensor([1, 2]),
        truncated=torch.tensor([True, True]),
        group=torch.tensor([0, 0]),
    )
    assert metrics["reward"] == 0.375 and metrics["unanimous_fraction"] == 0.0


@pytest.mark.parametrize("lengths", [[1], [], [[1, 2]]])
def test_shapes_are_checked(lengths):
    with pytest.raises(ValueError, match="one value per completion"):
        rollout_metrics(
            [1.0, 0.0], response_lengths=lengths, truncated=[0, 0], group=[0, 0]
        )
    with pytest.raises(ValueError, match="at least one"):
        rollout_metrics([], response_lengths=[], truncated=[], group=[])


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 2)])
def test_pass_at_k_equals_counting_all_subsets(n, c, k):
    subsets = list(itertools.combinations(range(n), k))
    hits = sum(any(index < c for index in subset) for subset in subsets)
    assert pass_at_k([c], [n], k) == pytest.approx(hits / len(subsets))


def test_pass_at_k_of_a_batch_averages_prompts():
    rewards, group = [1.0, 0.0, 0.0, 0.0], [0, 0, 1, 1]
    assert group_pass_at_k(rewards, group, 1, threshold=0.5) == 0.25
    assert group_pass_at_k(rewards, group, 2, threshold=0.5) == 0.5


def test_pass_at_k_is_checked():
    with pytest.raises(ValueError, match="at least k completions"):
        pass_at_k([1], [2], 3)
    with pytest.raises(ValueError, match="needs prompts"):
        pass_at_k([], [], 1)
