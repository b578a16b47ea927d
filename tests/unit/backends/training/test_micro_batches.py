"""Cutting shards into micro-batches, and which positions are predicted."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.backends.training.micro_batches import (
    predicted_positions,
    split_micro_batches,
)

CPU = torch.device("cpu")


def batch():
    ids = torch.arange(1, 31).reshape(5, 6)
    return {
        "input_ids": ids,
        "input_lengths": torch.tensor([3, 4, 2, 4, 3]),
        "token_mask": torch.ones(5, 6),
        "sample_mask": torch.ones(5),
        "advantages": ids.float(),
        "global_valid_tokens": torch.tensor(40.0),
        "global_valid_seqs": torch.tensor(5.0),
        "response": ["text"] * 5,
    }


def test_columns_beyond_the_longest_row_are_dropped():
    (micro,) = split_micro_batches(batch(), 5, CPU)
    assert micro["input_ids"].shape == (5, 4)
    assert torch.equal(micro["input_ids"], batch()["input_ids"][:, :4])
    assert micro["advantages"].shape == (5, 4)
    assert micro["sample_mask"].shape == (5,)
    assert "response" not in micro


@pytest.mark.parametrize(("multiple", "columns"), [(1, 4), (3, 6), (8, 8)])
def test_columns_are_padded_to_a_multiple(multiple, columns):
    (micro,) = split_micro_batches(batch(), 5, CPU, multiple=multiple)
    assert micro["input_ids"].shape == (5, columns)
    if columns > 6:
        assert (micro["token_mask"][:, 6:] == 0).all()


def test_last_micro_batch_is_filled_with_rows_that_count_for_nothing():
    micros = split_micro_batches(batch(), 2, CPU)
    assert [len(m["input_ids"]) for m in micros] == [2, 2, 2]
    joined = torch.cat([m["input_ids"] for m in micros])
    assert torch.equal(joined[:5], batch()["input_ids"][:, :4])
    filler = {k: v[1] for k, v in micros[2].items() if not k.startswith("global")}
    assert all((value == 0).all() for value in filler.values())
    for micro in micros:
        assert micro["global_valid_tokens"].item() == 40.0
        assert micro["global_valid_seqs"].item() == 5.0


def test_counts_are_never_taken_for_columns_of_rows():
    """One row and counts of one element each look alike."""
    single = {k: v[:1] for k, v in batch().items() if torch.is_tensor(v) and v.dim()}
    single["global_valid_tokens"] = torch.tensor([9.0])
    micros = split_micro_batches(single, 2, CPU)
    assert micros[0]["global_valid_tokens"].tolist() == [9.0]


def test_rows_of_one_token_still_have_two_columns():
    short = {
        "input_ids": torch.ones(2, 1).long(),
        "input_lengths": torch.ones(2).long(),
    }
    (micro,) = split_micro_batches(short, 2, CPU)
    assert micro["input_ids"].tolist() == [[1, 0], [1, 0]]


def test_predicted_positions_precede_the_masked_tokens():
    micro = {
        "input_ids": torch.ones(2, 4).long(),
        "input_lengths": torch.tensor([4, 3]),
        "token_mask": torch.tensor([[0.0, 0, 1, 1], [0, 1, 0, 0]]),
    }
    assert predicted_positions(micro).int().tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]


def test_predicted_positions_without_a_mask_cover_the_row():
    micro = {
        "input_ids": torch.ones(2, 4).long(),
        "input_lengths": torch.tensor([4, 2]),
    }
    assert predicted_positions(micro).int().tolist() == [[1, 1, 1, 0], [1, 0, 0, 0]]


def test_predicted_positions_are_never_empty():
    micro = {
        "input_ids": torch.ones(2, 3).long(),
        "input_lengths": torch.tensor([3, 3]),
        "token_mask": torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]),  # column 0 never counts
    }
    assert predicted_positions(micro).int().tolist() == [[1, 0, 0], [0, 0, 0]]
