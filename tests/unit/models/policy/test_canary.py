"""Log-probs of generator and trainer side by side: what is compared, and how."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.models.policy.canary import (
    canary_batch,
    mismatch,
    rollout_mismatch,
    run_canary,
)
from tests.fakes.tokenizers import character_tokenizer


def test_the_numbers_are_what_they_say():
    generator = torch.tensor([[0.0, -1.0, -2.0, -9.0]])
    trainer = torch.tensor([[0.0, -1.5, -1.0, 5.0]])
    errors = mismatch(generator, trainer, torch.tensor([[0, 1, 1, 0]]))
    assert errors.tokens == 2 and errors.not_finite == 0
    assert errors.mean_error == pytest.approx(0.75)
    assert errors.max_error == pytest.approx(1.0)
    assert errors.mult_prob_error == pytest.approx((math.exp(0.5) + math.e) / 2)
    # k3 is never negative: (e^-.5 - 1 + .5 + e^1 - 1 - 1) / 2
    assert errors.gen_kl == pytest.approx((math.exp(-0.5) - 0.5 + math.e - 2) / 2)
    assert math.isnan(errors.slope)


def test_another_temperature_shows_in_the_slope():
    generator = -torch.rand(1, 50) * 3
    errors = mismatch(generator, 1.4 * generator - 0.2, torch.ones(1, 50))
    assert errors.slope == pytest.approx(1.4)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_is_not_finite_is_counted_and_never_averaged_away(value: float):
    broken = torch.tensor([[-1.0, value, -2.0]])
    for left, right in ((broken, -torch.ones(1, 3)), (-torch.ones(1, 3), broken)):
        errors = mismatch(left, right, torch.ones(1, 3))
        assert errors.not_finite == 1 and errors.tokens == 3
        assert errors.mean_error == errors.max_error == math.inf
    errors = mismatch(broken, broken, torch.tensor([[0, 1, 0]]))
    assert errors.not_finite == 1 and errors.mean_error == math.inf
    assert mismatch(broken, broken, torch.zeros(1, 3)).mean_error == 0.0


def test_canaries_are_the_same_in_every_run():
    one = canary_batch(6, 5, vocab_size=50, special_ids=(0, 1, 2))
    two = canary_batch(6, 5, vocab_size=50, special_ids=(0, 1, 2))
    assert torch.equal(one["input_ids"], two["input_ids"])
    for ids, length in zip(one["input_ids"], one["input_lengths"], strict=True):
        assert ids[:length].min() >= 3 and (ids[length:] == 0).all()
    assert len(set(one["input_lengths"].tolist())) > 1
    assert one["max_new_tokens"].tolist() == [5] * 6
    assert len(set(one["sampling_seed"].tolist())) == 6
    short = canary_batch(6, 5, vocab_size=50, max_length=8)
    assert short["input_lengths"].max() == 4 and short["input_lengths"].min() == 4
    text = canary_batch(8, 5, tokenizer=character_tokenizer())
    assert text.size == 8 and torch.equal(text["input_ids"][0], text["input_ids"][6])
    assert text["input_lengths"].max() == 16


def test_a_tokenizer_that_knows_no_text_still_gives_prompts():
    tokenizer = character_tokenizer()
    tokenizer.encode = lambda text, **options: []
    batch = canary_batch(3, 5, tokenizer=tokenizer)
    assert batch["input_lengths"].min() > 0
    assert batch["input_ids"].max() < len(tokenizer)


def test_a_canary_is_compared_on_its_answer_alone():
    batch = canary_batch(2, 3, vocab_size=50)
    asked = {}

    def generate(data):
        rows, width = data["input_ids"].shape
        ids = torch.cat([data["input_ids"], torch.zeros(rows, 9).long()], dim=1)
        for row, start in enumerate(data["input_lengths"].tolist()):
            ids[row, start : start + 9] = torch.arange(40, 49)
        return BatchedDataDict(
            {
                "output_ids": ids,
                # The second stops early; the first overruns what was asked for.
                "unpadded_sequence_lengths": data["input_lengths"]
                + torch.tensor([9, 2]),
                "logprobs": -torch.ones(ids.shape),
            }
        )

    def score(data):
        asked.update(data)
        values = -torch.ones(data["input_ids"].shape)
        start = int(batch["input_lengths"][1])
        values[1, start + 1] = -1.5
        values[:, 0] = 77.0
        return BatchedDataDict({"logprobs": values})

    first, second = run_canary(batch, generate, score)
    assert first.token_ids == [40, 41, 42] and second.token_ids == [40, 41]
    assert first.prompt_ids == batch["input_ids"][0, :5].tolist()
    assert first.errors.max_error == 0.0 and second.errors.max_error == 0.5
    assert second.trainer == [-1.0, -1.5] and second.generator == [-1.0, -1.0]
    assert asked["input_ids"].shape[1] == int(batch["input_lengths"].max()) + 2


def rollout(rows: int = 6, width: int = 8) -> BatchedDataDict:
    mask = torch.zeros(rows, width)
    mask[:, 3:6] = 1
    return BatchedDataDict(
        {
            "input_ids": torch.arange(rows * width).view(rows, width),
            "input_lengths": torch.full((rows,), 6),
            "token_mask": mask,
            "sample_mask": torch.ones(rows),
            "generation_logprobs": -torch.ones(rows, width),
        }
    )


def recorder():
    seen = []

    def score(data):
        seen.append(data["input_ids"][:, 0].tolist())
        return BatchedDataDict({"logprobs": torch.full(data["input_ids"].shape, -1.25)})

    return seen, score


def test_some_rows_are_scored_and_only_their_responses_compared():
    seen, score = recorder()
    errors = rollout_mismatch(rollout(), score, 3)
    assert errors is not None and errors.tokens == 9
    assert errors.max_error == pytest.approx(0.25)
    assert seen == [[0, 16, 32]]


def test_rows_that_do_not_count_are_not_scored():
    seen, score = recorder()
    batch = rollout()
    batch["sample_mask"][:4] = 0
    errors = rollout_mismatch(batch, score, 3)
    assert errors is not None and errors.tokens == 6 and seen == [[32, 40]]
    batch["sample_mask"][:] = 0
    assert rollout_mismatch(batch, score, 3) is None
    assert rollout_mismatch(rollout(), score, 0) is None and len(seen) == 1


def test_known_log_probs_are_not_computed_again():
    seen, score = recorder()
    batch = rollout()
    batch["prev_logprobs"] = torch.full((6, 8), -1.5)
    errors = rollout_mismatch(batch, score, 2)
    assert errors is not None and errors.max_error == 0.5 and not seen


def test_tokens_of_other_weights_are_left_out():
    seen, score = recorder()
    batch = rollout()
    batch["token_versions"] = torch.full((6, 8), 4)
    batch["token_versions"][2] = 5
    # A token after one of other weights was sampled with a cache of theirs.
    batch["token_versions"][3, 7] = 5
    errors = rollout_mismatch(batch, score, 6, version=5)
    assert errors is not None and errors.tokens == 3 and len(seen) == 1
    assert rollout_mismatch(batch, score, 6, version=6) is None
    assert rollout_mismatch(batch, score, 6).tokens == 18
