"""Padding, limits, and what is too long."""

import pytest
import torch

from nemo_rl.config.data import DataConfig
from nemo_rl.data.encoding import EncoderContext, fitted, padded, token_batch
from nemo_rl.utils.exceptions import ConfigurationError, DataError
from tests.fakes.tokenizers import character_tokenizer


def context(limit=3, **config):
    return EncoderContext(DataConfig(**config), character_tokenizer(), limit)


def test_batches_are_filled_up_on_the_right():
    assert padded([[1, 2], [3]], 9, torch.int64).tolist() == [[1, 2], [3, 9]]
    batch = token_batch([([5, 6], [0, 1], True), ([7], [1], False)], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6], [7, 0]]
    assert batch["input_lengths"].tolist() == [2, 1]
    assert batch["token_mask"].tolist() == [[0, 1], [1, 0]]
    assert batch["sample_mask"].tolist() == [1, 0]


def test_what_fits_is_kept():
    assert fitted([1, 2, 3], [0, 1, 1], context(), "row 0") == (
        [1, 2, 3],
        [0, 1, 1],
        True,
    )


def test_what_is_too_long_is_an_error_unless_the_recipe_says_otherwise():
    ids, mask = [1, 2, 3, 4], [0, 0, 1, 1]
    with pytest.raises(DataError, match="row 0: has 4 tokens.* is 3.*data.overlong"):
        fitted(ids, mask, context(), "row 0")
    kept = fitted(ids, mask, context(overlong="truncate"), "row 0")
    assert kept == ([1, 2, 3], [0, 0, 1], True)
    assert fitted(ids, mask, context(overlong="skip"), "row 0")[2] is False


def test_a_beginning_without_an_answer_does_not_count():
    kept = fitted([1, 2, 3, 4], [0, 0, 0, 1], context(overlong="truncate"), "row 0")
    assert kept[2] is False


@pytest.mark.parametrize("mask", [[0, 0], [1, 0]])
def test_nothing_to_learn(mask):
    with pytest.raises(DataError, match="row 7: nothing to train on"):
        fitted([1, 2], mask, context(), "row 7")


def test_a_tokenizer_is_needed():
    with pytest.raises(ConfigurationError, match="has no tokenizer"):
        EncoderContext(DataConfig(), None).need_tokenizer()
