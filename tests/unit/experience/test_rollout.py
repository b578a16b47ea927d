"""Rollouts over a scripted policy and environment: shapes, masks, seeds, rewards."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn
from nemo_rl.experience.rollout import RolloutEngine, repeat_prompts
from nemo_rl.utils.exceptions import RewardError
from nemo_rl.utils.seeding import derive_seed

EOS = 2


class ScriptedPolicy:
    """Appends a fixed response per row; remembers what it was asked."""

    def __init__(self, responses):
        self.responses, self.asked = responses, []

    def generate(self, data, greedy=False):
        self.asked.append((data, greedy))
        starts = data["input_lengths"].tolist()
        ends = [s + len(r) for s, r in zip(starts, self.responses, strict=True)]
        ids = torch.zeros(len(starts), max(ends), dtype=torch.int64)
        logprobs = torch.full(ids.shape, -9.0)  # also where nothing was sampled
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            ids[row, :start] = data["input_ids"][row, :start]
            ids[row, start:end] = torch.tensor(self.responses[row])
            logprobs[row, start:end] = -0.5
        return BatchedDataDict(
            {
                "output_ids": ids,
                "logprobs": logprobs,
                "unpadded_sequence_lengths": torch.tensor(ends),
                "generation_lengths": torch.tensor(ends) - data["input_lengths"],
                "truncated": torch.tensor([r[-1] != EOS for r in self.responses]),
            }
        )


class ScriptedEnvironment(EnvironmentInterface):
    """Answers given rewards; remembers what it was shown."""

    def __init__(self, rewards, metrics=None):
        super().__init__()
        self.rewards, self.metrics = rewards, metrics or {}

    def step(self, message_log_batch, metadata):
        self.seen = (message_log_batch, metadata)
        return EnvironmentReturn([], [], [], self.rewards, None, None)

    def global_post_process_and_metrics(self, batch):
        self.post_processed = batch
        return batch, self.metrics


class LetterTokenizer:
    """Token 3 is "a", 4 is "b" ...; 0, 1 and 2 are special."""

    def batch_decode(self, rows, skip_special_tokens):
        assert skip_special_tokens
        return ["".join(chr(94 + t) for t in row if t > 2) for row in rows]


def prompts():
    return BatchedDataDict(
        {
            "input_ids": torch.tensor([[3, 4, 5], [6, 7, 0]]),
            "input_lengths": torch.tensor([3, 2]),
            "idx": torch.tensor([17, 4]),
            "prompt": ["abc", "de"],
            "messages": [[{"role": "user", "content": c}] for c in ("abc", "de")],
            "answer": ["x", None],
            "task_name": ["default", "default"],
            "row": [{"extra": 1}, {"extra": 2}],
        }
    )


RESPONSES = [[8, EOS], [9], [10, 11, EOS], [EOS]]


def run(rewards=None, responses=RESPONSES, metrics=None, seed=5, **options):
    policy = ScriptedPolicy(responses)
    if rewards is None:
        rewards = torch.tensor([1.0, 0.0, 2.0, 2.0])
    environment = ScriptedEnvironment(rewards, metrics)
    engine = RolloutEngine(policy, environment, LetterTokenizer(), seed=seed)
    batch = repeat_prompts(prompts(), len(responses) // 2)
    rollouts, found = engine.run(batch, **options)
    return rollouts, found, policy, environment


def test_repeat_prompts_groups_by_position_not_by_content():
    batch = prompts()
    batch["input_ids"][1] = batch["input_ids"][0]
    repeated = repeat_prompts(batch, 3)
    assert repeated["group"].tolist() == [0, 0, 0, 1, 1, 1]
    assert repeated["idx"].tolist() == [17, 17, 17, 4, 4, 4]
    assert repeated["prompt"] == ["abc"] * 3 + ["de"] * 3
    assert "group" not in batch


def test_rollout_masks_exactly_the_response_and_its_end_token():
    rollouts, _, _, _ = run()
    assert rollouts["input_ids"].tolist() == [
        [3, 4, 5, 8, 2],
        [3, 4, 5, 9, 0],
        [6, 7, 10, 11, 2],
        [6, 7, 2, 0, 0],
    ]
    mask = [[0, 0, 0, 1, 1], [0, 0, 0, 1, 0], [0, 0, 1, 1, 1], [0, 0, 1, 0, 0]]
    assert rollouts["token_mask"].tolist() == mask
    assert rollouts["token_mask"].dtype == torch.float32
    expected = torch.tensor(mask) * -0.5
    assert torch.equal(rollouts["generation_logprobs"], expected)
    assert rollouts["input_lengths"].tolist() == [5, 4, 5, 3]
    assert rollouts["prompt_lengths"].tolist() == [3, 3, 2, 2]
    assert rollouts["sample_mask"].tolist() == [1.0] * 4
    assert rollouts["truncated"].tolist() == [False, True, False, False]


def test_rollout_keeps_the_prompt_fields_and_adds_text_and_rewards():
    rollouts, _, _, _ = run()
    assert rollouts["response"] == ["f", "g", "hi", ""]
    assert rollouts["group"].tolist() == [0, 0, 1, 1]
    assert rollouts["idx"].tolist() == [17, 17, 4, 4]
    assert rollouts["answer"] == ["x", "x", None, None]
    assert rollouts["rewards"].tolist() == [1.0, 0.0, 2.0, 2.0]
    assert rollouts["rewards"].dtype == torch.float32


def test_environment_sees_conversations_and_their_rows():
    _, _, _, environment = run()
    conversations, metadata = environment.seen
    assert conversations[2] == [
        {"role": "user", "content": "de"},
        {"role": "assistant", "content": "hi"},
    ]
    assert metadata[1] == {
        "prompt": "abc",
        "answer": "x",
        "row": {"extra": 1},
        "truncated": True,
    }
    assert [m["truncated"] for m in metadata] == [False, True, False, False]
    # The messages of the samples of one prompt are not written into.
    assert len(environment.post_processed["messages"][0]) == 1


def test_policy_is_given_prompts_and_a_seed_per_step_and_row():
    _, _, policy, _ = run(step=3)
    ((data, greedy),) = policy.asked
    assert greedy is False
    assert set(data) == {"input_ids", "input_lengths", "sampling_seed"}
    seeds = data["sampling_seed"].tolist()
    assert seeds == [derive_seed(5, "rollout", 3, row) for row in range(4)]
    assert len(set(seeds)) == 4


def test_seeds_change_with_the_step_and_the_run_and_repeat_otherwise():
    def seeds(**options):
        return run(**options)[2].asked[0][0]["sampling_seed"].tolist()

    base = seeds(step=3)
    assert seeds(step=3) == base
    assert not set(seeds(step=4)) & set(base)
    assert not set(seeds(step=3, seed=6)) & set(base)


def test_greedy_is_passed_on():
    assert run(greedy=True)[2].asked[0][1] is True


def test_rollout_metrics_describe_the_responses():
    _, metrics, _, _ = run(metrics={"solved": 0.25, "reward": 99.0})
    assert metrics["solved"] == 0.25
    assert metrics["reward"] == 1.25  # the environment cannot overwrite it
    assert metrics["response_length"] == (2 + 1 + 3 + 1) / 4
    assert metrics["truncated_fraction"] == 0.25
    assert metrics["unanimous_fraction"] == 0.5  # both answers to "de" got 2


def test_rewards_may_be_a_list():
    rollouts, _, _, _ = run(rewards=[1, 0, 0.5, 0])
    assert rollouts["rewards"].tolist() == [1.0, 0.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("rewards", "shape"),
    [
        (torch.zeros(3), r"\[3\]"),
        (torch.zeros(4, 1), r"\[4, 1\]"),
        (torch.tensor(1.0), r"\[\]"),
        ([], r"\[0\]"),
    ],
)
def test_rewards_of_another_shape_are_refused(rewards, shape):
    message = f"ScriptedEnvironment.step returned rewards of shape {shape} for 4"
    with pytest.raises(RewardError, match=message):
        run(rewards=rewards)
