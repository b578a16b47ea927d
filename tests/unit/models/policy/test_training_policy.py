"""Sharding, padding and metric arithmetic of the driver, over fake workers."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.config.parallel import ParallelDims
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.models.policy.training_policy import (
    TrainingPolicy,
    pad_rows_to_multiple,
    scorable,
    shard_over_replicas,
)
from nemo_rl.utils.exceptions import DataError, TrainingError
from tests.fakes.workers import FakeWorkers
from tests.functional.engines import policy_config

DP2_TP2 = ParallelDims(4, tp=2)
DP2_PP2 = ParallelDims(4, pp=2)


def batch(rows=8, columns=3):
    return BatchedDataDict(
        {
            "input_ids": torch.arange(rows * columns).reshape(rows, columns),
            "input_lengths": torch.full((rows,), columns),
            "token_mask": torch.ones(rows, columns),
            "sample_mask": torch.ones(rows),
            "response": ["text"] * rows,
        }
    )


def first_rows(per_rank):
    return [args[0]["input_ids"][:, 0].tolist() for args in per_rank]


def test_ranks_of_a_replica_share_their_shard():
    shards = shard_over_replicas(batch(4), DP2_TP2)
    assert [s["input_ids"][:, 0].tolist() for s in shards] == [
        [0, 3],
        [0, 3],
        [6, 9],
        [6, 9],
    ]
    assert "response" not in shards[0]
    # Pipeline stages are the slowest axis: replicas alternate.
    shards = shard_over_replicas(batch(4), DP2_PP2)
    starts = [s["input_ids"][0, 0].item() for s in shards]
    assert starts == [0, 6, 0, 6]


def test_shards_must_be_even():
    with pytest.raises(DataError, match="5 rows does not divide into 2"):
        shard_over_replicas(batch(5), DP2_TP2)


def test_prompts_and_what_was_generated_can_be_scored():
    given = batch(2)
    assert scorable(given) is given
    ids, mask = given["input_ids"], torch.tensor([[1, 1, 0], [1, 1, 1]])
    prompts = scorable(BatchedDataDict({"input_ids": ids, "attention_mask": mask}))
    assert prompts["input_lengths"].tolist() == [2, 3]
    generated = {"output_ids": ids, "unpadded_sequence_lengths": torch.tensor([3, 2])}
    answers = scorable(BatchedDataDict(generated))
    assert torch.equal(answers["input_ids"], ids)
    assert answers["input_lengths"].tolist() == [3, 2]
    with pytest.raises(DataError, match="nothing to score in columns token_mask"):
        scorable(BatchedDataDict({"token_mask": ids}))


def test_padding_repeats_the_last_row():
    padded, rows = pad_rows_to_multiple(batch(5), 4)
    assert (padded.size, rows) == (8, 5)
    assert padded["input_ids"][5:, 0].tolist() == [12, 12, 12]
    same = batch(8)
    assert pad_rows_to_multiple(same, 4) == (same, 8)


def reports(micro):
    """A train_step answer per rank; ``micro`` maps a rank to its micro metrics."""

    def answer(rank, method, args):
        return {
            "grad_norm": 2.0,
            "learning_rate": 0.1,
            "micro_metrics": micro(rank),
            "cpu_s": 1.5,
            "peak_memory_bytes": (rank + 1) * 2**30,
        }

    return answer


def policy(answer, dims=DP2_TP2, **changes):
    workers = FakeWorkers(dims.world_size, answer)
    config = policy_config(**{"train_global_batch_size": 4, **changes})
    return TrainingPolicy(workers, dims, config), workers


def loss_fn(batch, output):
    raise AssertionError("the driver calls no loss")


def test_train_runs_one_update_per_global_batch():
    trainer, workers = policy(reports(lambda rank: [{"loss": 1.0}]))
    metrics = trainer.train(batch(8), loss_fn)
    assert [method for method, _ in workers.calls] == ["train_step", "train_step"]
    first, second = (per_rank for _, per_rank in workers.calls)
    assert first_rows(first) == [[0, 3], [0, 3], [6, 9], [6, 9]]
    assert first_rows(second) == [[12, 15], [12, 15], [18, 21], [18, 21]]
    assert all(args[1] is loss_fn for args in first)
    assert metrics["num_updates"] == 2


def test_train_counts_valid_tokens_over_the_global_batch():
    data = batch(8)
    data["token_mask"][:, 0] = 1.0  # column 0 is never predicted
    data["token_mask"][1, 2] = 0.0
    data["sample_mask"][3] = 0.0
    trainer, workers = policy(reports(lambda rank: [{"loss": 1.0}]))
    metrics = trainer.train(data, loss_fn)
    first, second = (per_rank for _, per_rank in workers.calls)
    # Four rows of two predicted tokens, less one token and less one row.
    assert {args[0]["global_valid_tokens"].item() for args in first} == {5.0}
    assert {args[0]["global_valid_seqs"].item() for args in first} == {3.0}
    assert {args[0]["global_valid_tokens"].item() for args in second} == {8.0}
    assert metrics["global_valid_tokens"] == 13.0


def test_train_sums_shares_of_leaders_and_averages_over_updates():
    """Two replicas of two micro-batches each; only the leaders' reports count."""
    shares = {
        0: [{"loss": 1.0, "kl": 0.1, "r_max": 3.0, "r_min": 0.5}] * 2,
        1: [{"loss": 50.0, "kl": 50.0, "r_max": 50.0, "r_min": -50.0}],
        2: [
            {"loss": 2.0, "kl": 0.2, "r_max": 1.0, "r_min": 0.7},
            {"loss": 3.0, "kl": 0.3, "r_max": 7.0, "r_min": 0.9},
        ],
        3: [],
    }
    trainer, _ = policy(reports(shares.__getitem__))
    metrics = trainer.train(batch(8), loss_fn)
    assert metrics["loss"] == 7.0
    assert metrics["kl"] == pytest.approx(0.7)
    assert (metrics["r_max"], metrics["r_min"]) == (7.0, 0.5)
    assert metrics["grad_norm"] == 2.0
    assert metrics["learning_rate"] == 0.1
    assert metrics["train_cpu_s"] == 2 * 4 * 1.5
    assert metrics["peak_memory_gib_max"] == 4.0


def test_train_reads_the_last_pipeline_stage():
    """Ranks 2 and 3 hold the last stage; the others have nothing to report."""

    def micro(rank):
        return [{"loss": float(rank)}] if rank >= 2 else []

    trainer, _ = policy(reports(micro), DP2_PP2)
    assert trainer.train(batch(4), loss_fn)["loss"] == 5.0


def test_train_combines_extremes_and_means_over_updates():
    losses = iter([[{"loss": 1.0, "r_max": 9.0}]] + [[{"loss": 3.0, "r_max": 2.0}]])
    trainer, _ = policy(reports(lambda rank: next(losses)), ParallelDims(1))
    metrics = trainer.train(batch(8), loss_fn)
    assert metrics["loss"] == 2.0
    assert metrics["r_max"] == 9.0


def test_extremes_over_no_token_are_left_out():
    none, some = float("-inf"), 9.0
    losses = iter([[{"loss": 0.0, "r_max": none}], [{"loss": 1.0, "r_max": some}]])
    trainer, _ = policy(reports(lambda rank: next(losses)), ParallelDims(1))
    assert trainer.train(batch(8), loss_fn)["r_max"] == 9.0
    trainer, _ = policy(reports(lambda rank: [{"loss": 0.0, "r_max": none}]))
    assert "r_max" not in trainer.train(batch(8), loss_fn)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_loss_that_is_not_finite_stops_the_run(value):
    trainer, _ = policy(reports(lambda rank: [{"loss": value}]))
    with pytest.raises(TrainingError, match="loss is -?(nan|inf).*no longer usable"):
        trainer.train(batch(4), loss_fn)


def test_gradient_that_is_not_finite_stops_the_run():
    def answer(rank, method, args):
        report = reports(lambda _: [{"loss": 1.0}])(rank, method, args)
        return {**report, "grad_norm": float("nan")}

    trainer, _ = policy(answer)
    with pytest.raises(TrainingError, match="grad_norm is nan"):
        trainer.train(batch(4), loss_fn)


def test_train_refuses_rows_that_do_not_fill_a_global_batch():
    trainer, _ = policy(reports(lambda rank: [{"loss": 1.0}]))
    with pytest.raises(DataError, match="6 rows .* updates of 4 rows over 2 copies"):
        trainer.train(batch(6), loss_fn)


def scores(rank, method, args):
    """Each row's first id as its score; garbage where nobody should look."""
    ids = args[0]["input_ids"].float()
    return ids if rank in (0, 2) else None


@pytest.mark.parametrize(
    ("method", "key"),
    [
        ("get_logprobs", "logprobs"),
        ("get_reference_logprobs", "reference_policy_logprobs"),
    ],
)
@pytest.mark.parametrize("rows", [1, 5, 8])
def test_scores_come_back_in_order_without_padding(method, key, rows):
    trainer, workers = policy(scores)
    output = getattr(trainer, method)(batch(rows))
    assert [name for name, _ in workers.calls] == [method]
    assert list(output) == [key]
    assert torch.equal(output[key], batch(rows)["input_ids"].float())


def test_files_are_asked_of_every_rank(tmp_path):
    trainer, workers = policy(None)
    trainer.save_checkpoint(tmp_path, with_optimizer=False)
    trainer.load_checkpoint(tmp_path)
    trainer.save_hf(tmp_path)
    path = str(tmp_path)
    assert workers.calls == [
        ("save_checkpoint", [(path, False)] * 4),
        ("load_checkpoint", [(path,)] * 4),
        ("save_hf", [(path,)] * 4),
    ]


def test_a_policy_without_a_batch_size_makes_one_update_of_every_batch():
    trainer, workers = policy(reports(lambda rank: [{"loss": 1.0}]))
    trainer.one_update = True
    assert trainer.train(batch(6), loss_fn)["num_updates"] == 1
