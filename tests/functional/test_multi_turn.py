"""Conversations of several turns on real Megatron: sampled, trained on, learned from.

Covers one rank on CPU in fp32. That layouts sample and train alike is test_parity's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_rl.algorithms.grpo.config import ClippedPGLossConfig, GRPOConfig
from nemo_rl.algorithms.grpo.data import build_train_batch
from nemo_rl.algorithms.grpo.loss import GRPOLossFn
from nemo_rl.algorithms.grpo.trainer import GRPOTrainer
from nemo_rl.backends.generation.base import SamplingParams
from nemo_rl.backends.generation.megatron import MegatronInferenceBackend
from nemo_rl.data.module import DataModule
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.distributed.local import LocalCluster
from nemo_rl.environments.factory import make_environment
from nemo_rl.experience.rollout import RolloutEngine, repeat_prompts
from nemo_rl.models.policy.lm_policy import Policy
from tests.fakes.tokenizers import character_tokenizer
from tests.functional import tiny_task
from tests.functional.engines import engine, policy_config, with_counts
from tests.functional.ranks import run_ranks

TURNS = 3
ROWS = [{"prompt": f"{n}>", "answer": str(n)} for n in range(8)]


class SayDigits:
    """Every turn wants a digit; ends early after a turn of "0"."""

    def step(self, action: str) -> tuple[Any, float, bool, dict[str, float]]:
        good = action[:1].isdigit()
        said = "ok>" if good else "no, a digit>"
        return said, float(good) / TURNS, action[:1] == "0", {"digits": float(good)}


def _random(_, folder: Path) -> str:
    return str(tiny_task.make_model(folder, sft_steps=0))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("turns") / "model"
    return Path(run_ranks(_random, 1, folder)[0])


def _learn(_, model: Path, folder: Path) -> list[dict[str, Any]]:
    recipe = tiny_task.recipe(model, workers=1)
    recipe["policy"]["train_micro_batch_size"] = 64
    recipe["policy"]["max_total_sequence_length"] = 64
    recipe["policy"]["optimizer"]["kwargs"]["lr"] = 5.0e-3
    recipe["policy"]["generation"]["max_new_tokens"] = 1
    recipe["grpo"] |= {
        "num_prompts_per_step": 8,
        "num_generations_per_prompt": 8,
        "max_num_steps": 16,
        "val_period": 0,
        "max_rollout_turns": TURNS,
    }
    recipe["data"], recipe["checkpointing"] = {}, {"enabled": False}
    recipe["logger"] = {"monitor_gpus": False, "log_dir": str(folder)}
    config = GRPOTrainer.config_class.from_mapping(recipe)
    policy = Policy(LocalCluster(), config.policy, character_tokenizer())
    GRPOTrainer(config, policy=policy).fit(ROWS, SayDigits)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_game_of_several_turns_is_learned(model, tmp_path):
    (metrics,) = run_ranks(_learn, 1, model, tmp_path)
    rewards = [m["train/reward"] for m in metrics if "train/reward" in m]
    print("rewards of the steps:", [round(r, 2) for r in rewards])
    assert len(rewards) == 16
    assert rewards[0] < 0.3 and sum(rewards[-3:]) / 3 > 0.6
    lines = (tmp_path / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()
    recorded = [json.loads(line) for line in lines]
    row = next(row for row in recorded if row["num_turns"] == TURNS)
    roles = [message["role"] for message in row["conversation"]]
    assert roles == ["assistant", "user"] * (TURNS - 1) + ["assistant"]


class Sampler:
    """The generator of an engine as a policy; notes what it was asked."""

    def __init__(self, backend: Any) -> None:
        self._generation, self.asked = MegatronInferenceBackend(), []
        self._generation.setup(backend)

    def generate(self, data: BatchedDataDict, greedy: bool = False) -> BatchedDataDict:
        self.asked.append(data)
        params = SamplingParams(
            max_new_tokens=4, max_total_length=64, stop_token_ids=(2,)
        )
        return BatchedDataDict(self._generation.generate(dict(data), params))


def _one_row_per_turn(batch: BatchedDataDict) -> dict[str, torch.Tensor]:
    """Every turn as a row: the conversation up to its end, only its own tokens count.

    So observations stand in prompts alone, where no loss is taken.
    """
    rows: dict[str, list[torch.Tensor]] = {key: [] for key in batch}
    for number in range(batch.size):
        mask = batch["token_mask"][number]
        edges = torch.diff(mask, prepend=mask.new_zeros(1), append=mask.new_zeros(1))
        starts, ends = (edges == 1).nonzero()[:, 0], (edges == -1).nonzero()[:, 0]
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            columns = torch.arange(len(mask))
            own = ((columns >= start) & (columns < end)).float()
            for key, values in batch.items():
                rows[key].append(values[number] * (own if key in _PER_TOKEN else 1))
            ids = batch["input_ids"][number]
            rows["input_ids"][-1] = torch.where(columns < end, ids, 0)
            rows["input_lengths"][-1] = torch.tensor(end)
    return {key: torch.stack(values) for key, values in rows.items()}


_PER_TOKEN = ("token_mask", "advantages", "generation_logprobs", "prev_logprobs")


def _both_ways(rank, model: Path):
    # Updates that change nothing: both start from the same weights.
    still = {"kwargs": {"lr": 1e-30, "weight_decay": 0.0}}
    backend = engine(rank, model, policy_config(optimizer=still))
    tokenizer = character_tokenizer()
    sampler = Sampler(backend)
    rollout_engine = RolloutEngine(
        sampler,
        make_environment(reward_fn=SayDigits),
        tokenizer,
        seed=3,
        max_turns=TURNS,
        max_total_length=64,
    )
    batch = next(DataModule(ROWS, tokenizer).batches(4))
    rollouts, metrics = rollout_engine.run(repeat_prompts(batch, 2))
    train = build_train_batch(rollouts, GRPOConfig())
    mask = train["token_mask"]
    scores = backend.get_logprobs(dict(train))
    gap = ((scores - train["generation_logprobs"]) * mask).abs().max().item()
    train["advantages"] = torch.randn(len(mask), 1) * mask
    train["prev_logprobs"] = (scores + 0.1 * torch.randn(mask.shape)) * mask
    results = []
    for columns in (dict(train), _one_row_per_turn(train)):
        result = backend.train_step(with_counts(columns), GRPOLossFn(LOSS))
        loss = sum(m["loss"] for m in result["micro_metrics"])
        results.append((float(loss), float(result["grad_norm"])))
    turns = rollouts["num_turns"].tolist()
    return gap, results, turns, [d.size for d in sampler.asked], metrics["turns"]


LOSS = ClippedPGLossConfig(reference_policy_kl_penalty=0.0)


def test_a_conversation_weighs_as_its_turns_do(model):
    """Masked = sliced, and the generator saw what the trainer sees."""
    ((gap, results, turns, asked, mean),) = run_ranks(_both_ways, 1, model)
    (loss, norm), (loss_of_turns, norm_of_turns) = results
    assert gap <= 1e-4
    assert norm > 0
    assert loss == pytest.approx(loss_of_turns, abs=1e-6)
    assert norm == pytest.approx(norm_of_turns, rel=1e-5)
    assert max(turns) == TURNS and asked[0] == 8 and mean == sum(turns) / 8
