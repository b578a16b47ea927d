"""Pairs that count, and their means."""

import torch

from nemo_rl.metrics.pairs import pair_rows, row_means


def test_both_rows_of_a_pair_count_or_neither():
    values = {"loss": torch.tensor([1.0, 2.0, 4.0])}
    mask = torch.tensor([1.0, 1, 0, 1, 1, 1])
    rows = pair_rows(values, mask)
    assert rows == [{"loss": 1.0}, {"loss": 4.0}]
    assert row_means(rows) == {"loss": 2.5, "num_samples": 2.0}
