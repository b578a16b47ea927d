"""What a generator is given: lengths, seeds, room."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.models.generation.prompts import checked_prompts
from nemo_rl.utils.exceptions import ConfigurationError, DataError

IDS = torch.tensor([[5, 6, 7], [8, 9, 0]])
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def test_lengths_come_from_the_mask_and_seeds_from_the_row():
    found = checked_prompts(
        BatchedDataDict({"input_ids": IDS, "attention_mask": MASK, "idx": [1, 2]}), 8
    )
    assert found["input_lengths"].tolist() == [3, 2]
    assert found["sampling_seed"].tolist() == [0, 1]
    assert "idx" not in found


def test_what_is_given_is_kept():
    given = {
        "input_ids": IDS,
        "input_lengths": torch.tensor([3, 1]),
        "sampling_seed": torch.tensor([7, 2**62]),
        "max_new_tokens": torch.tensor([1, 2]),
    }
    found = checked_prompts(BatchedDataDict(given), 8)
    assert all(torch.equal(found[name], value) for name, value in given.items())


@pytest.mark.parametrize(
    ("lengths", "limit", "kind", "message"),
    [
        ([3, 0], 8, DataError, "at least one token"),
        ([4, 1], 8, DataError, "no more than the batch is wide"),
        ([3, 1], 3, ConfigurationError, "Raise it to at least 4"),
    ],
)
def test_refused(lengths, limit, kind, message):
    data = {"input_ids": IDS, "input_lengths": torch.tensor(lengths)}
    with pytest.raises(kind, match=message):
        checked_prompts(BatchedDataDict(data), limit)
