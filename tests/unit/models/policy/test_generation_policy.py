"""What the driver asks of the samplers and how it joins their answers."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.config.parallel import ParallelDims
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.models.policy.generation_policy import GenerationPolicy
from nemo_rl.utils.exceptions import ConfigurationError, DataError, TrainingError
from tests.fakes.workers import FakeWorkers
from tests.functional.engines import policy_config


def prompts(rows, **columns):
    return BatchedDataDict(
        {
            "input_ids": torch.arange(rows * 2).reshape(rows, 2) + 1,
            "input_lengths": torch.full((rows,), 2),
            **columns,
        }
    )


def echo(rank, method, args):
    """The prompt and its seed as the response; replica 1 answers longer."""
    shard, _ = args
    rows, extra = len(shard["input_ids"]), 1 + rank // 2
    ids = torch.cat(
        [shard["input_ids"], shard["sampling_seed"][:, None].repeat(1, extra)], 1
    )
    return {
        "output_ids": ids if rank % 2 == 0 else ids * 0 - 1,
        "logprobs": torch.full(ids.shape, -0.5),
        "unpadded_sequence_lengths": torch.full((rows,), ids.shape[1]),
        "generation_lengths": torch.full((rows,), extra),
        "truncated": torch.full((rows,), rank == 2),
    }


def policy(answer=echo, **generation):
    workers = FakeWorkers(4, answer)
    config = policy_config(
        generation={"max_new_tokens": 5, **generation}, generation_batch_size=7
    )
    dims = ParallelDims(4, tp=2)
    return GenerationPolicy(workers, dims, config, stop_token_ids=(2,)), workers


def test_replicas_get_their_rows_and_answers_are_joined_with_padding():
    generator, workers = policy()
    output = generator.generate(prompts(4))
    ((method, per_rank),) = workers.calls
    assert method == "generate"
    ids = [shard["input_ids"][:, 0].tolist() for shard, _ in per_rank]
    assert ids == [[1, 3], [1, 3], [5, 7], [5, 7]]
    # Without seeds a row's seed is its index; the shorter replica is padded.
    assert output["output_ids"].tolist() == [
        [1, 2, 0, 0],
        [3, 4, 1, 0],
        [5, 6, 2, 2],
        [7, 8, 3, 3],
    ]
    assert output["logprobs"][0].tolist() == [-0.5, -0.5, -0.5, 0.0]
    assert output["truncated"].tolist() == [False, False, True, True]
    assert output["generation_lengths"].tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_uneven_rows_are_padded_and_dropped_again(rows):
    generator, workers = policy()
    output = generator.generate(prompts(rows))
    sizes = {len(shard["input_ids"]) for shard, _ in workers.calls[0][1]}
    assert sizes == {-(-rows // 2)}
    assert output.size == rows
    assert output["output_ids"][:, 0].tolist() == [1 + 2 * row for row in range(rows)]


def test_given_seeds_travel_with_their_rows():
    generator, _ = policy()
    output = generator.generate(prompts(2, sampling_seed=torch.tensor([2**62, 9])))
    assert output["output_ids"][:, 2].tolist() == [2**62, 9]


def test_attention_mask_may_stand_for_lengths():
    generator, workers = policy()
    data = prompts(2)
    del data["input_lengths"]
    data["attention_mask"] = torch.tensor([[1, 1], [1, 0]])
    generator.generate(data)
    lengths = [shard["input_lengths"].tolist() for shard, _ in workers.calls[0][1]]
    assert lengths == [[2], [2], [1], [1]]


def test_sampling_parameters_come_from_the_configuration():
    generator, workers = policy(temperature=0.7, top_p=0.9, top_k=5, stop_strings=["x"])
    generator.generate(prompts(2))
    generator.generate(prompts(2), greedy=True)
    params, greedy = (calls[0][1] for _, calls in workers.calls)
    assert (params.temperature, params.top_p, params.top_k) == (0.7, 0.9, 5)
    assert (params.max_new_tokens, params.max_total_length) == (5, 64)
    assert params.stop_strings == ("x",)
    assert params.batch_size == 7
    assert params.stop_token_ids == (2,)
    assert greedy.temperature == 0.0
    assert greedy.top_p == 0.9


@pytest.mark.parametrize(("own", "longest"), [([1, 3], 3), ([9, 2], 5)])
def test_rows_may_ask_for_shorter_responses(own, longest):
    generator, workers = policy()
    generator.generate(prompts(2, max_new_tokens=torch.tensor(own)))
    shard, params = workers.calls[0][1][0]
    assert params.max_new_tokens == longest and "max_new_tokens" not in shard


@pytest.mark.parametrize("ids", [None, [4]])
def test_ignore_eos_leaves_nothing_that_ends_a_response(ids):
    generator, workers = policy(stop_token_ids=ids, stop_strings=["x"], ignore_eos=True)
    generator.generate(prompts(2))
    _, params = workers.calls[0][1][0]
    assert (params.stop_token_ids, params.stop_strings) == ((), ())


@pytest.mark.parametrize(
    ("rows", "lengths"), [(0, []), (2, [2, 0]), (2, [-1, 2]), (2, [3, 2])]
)
def test_prompts_that_cannot_be_are_refused(rows, lengths):
    generator, workers = policy()
    data = BatchedDataDict(
        {
            "input_ids": torch.ones(rows, 2, dtype=torch.int64),
            "input_lengths": torch.tensor(lengths, dtype=torch.int64),
        }
    )
    with pytest.raises(DataError, match="at least one token"):
        generator.generate(data)
    assert not workers.calls


@pytest.mark.parametrize(
    ("configured", "used"), [(None, (2,)), ([4, 5], (4, 5)), ([], ())]
)
def test_configured_stop_tokens_win_over_the_tokenizer(configured, used):
    workers = FakeWorkers(4, echo)
    config = policy_config(generation={"stop_token_ids": configured})
    generator = GenerationPolicy(
        workers, ParallelDims(4, tp=2), config, stop_token_ids=(2,)
    )
    generator.generate(prompts(2))
    assert workers.calls[0][1][0][1].stop_token_ids == used


def test_prompt_without_room_for_a_response_is_refused():
    generator, workers = policy()
    data = prompts(2)
    data["input_ids"] = torch.ones(2, 64, dtype=torch.int64)
    data["input_lengths"] = torch.tensor([2, 64])
    with pytest.raises(
        ConfigurationError, match="64 tokens and policy.max_total.* at least 65"
    ):
        generator.generate(data)
    assert workers.calls == []


def test_logprob_that_is_not_finite_stops_the_run():
    def broken(rank, method, args):
        answer = echo(rank, method, args)
        answer["logprobs"][0, 1] = float("nan")
        return answer

    generator, _ = policy(broken)
    with pytest.raises(TrainingError, match="log-probs that are not finite"):
        generator.generate(prompts(4))
