"""Rollouts over a scripted policy and environment: shapes, masks, seeds, rewards."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.environments.interfaces import EnvironmentInterface, EnvironmentReturn
from nemo_rl.experience.rollout import RolloutEngine, repeat_prompts
from nemo_rl.utils.exceptions import DataError, RewardError
from nemo_rl.utils.seeding import derive_seed
from tests.fakes.tokenizers import FORGETFUL, character_tokenizer

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
        "task_name": "default",
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


class Countdown(EnvironmentInterface):
    """Says how many turns are left of a row's ``extra``; 0.5 for each."""

    def __init__(self, **replaced):
        super().__init__()
        self.replaced, self.seen = replaced, []

    def step(self, message_log_batch, metadata):
        self.seen.append((message_log_batch, metadata))
        left = [m.get("left", m["row"]["extra"]) - 1 for m in metadata]
        returned = EnvironmentReturn(
            observations=[{"role": "user", "content": f"{n} left"} for n in left],
            metadata=[{"left": n} for n in left],
            next_stop_strings=[["!"] if n == 1 else None for n in left],
            rewards=torch.full((len(left),), 0.5),
            terminateds=torch.tensor([n == 0 for n in left]),
            answers=None,
            metrics={"seen": torch.ones(len(left))},
        )
        return returned._replace(**self.replaced)


class EchoPolicy:
    """Says "a!b" and ends; notes its prompts. Row numbers are those of the call."""

    def __init__(self, tokenizer, text="a!b", limit=None):
        self.said = [*tokenizer(text)["input_ids"], EOS]
        self.limit, self.asked = limit, []

    def generate(self, data, greedy=False):
        self.asked.append(data)
        lengths = data["input_lengths"].tolist()
        said = self.said[: self.limit]
        ids = torch.zeros(len(lengths), max(lengths) + len(said), dtype=torch.int64)
        logprobs = torch.zeros(ids.shape)
        for row, start in enumerate(lengths):
            ids[row, :start] = data["input_ids"][row, :start]
            ids[row, start : start + len(said)] = torch.tensor(said)
            logprobs[row, start : start + len(said)] = -float(len(self.asked))
        return BatchedDataDict(
            {
                "output_ids": ids,
                "logprobs": logprobs,
                "unpadded_sequence_lengths": data["input_lengths"] + len(said),
                "truncated": torch.full((len(lengths),), self.limit is not None),
            }
        )


def play(turns, *, environment=None, limit=None, max_turns=5, **options):
    tokenizer = character_tokenizer()
    ids = tokenizer("pq")["input_ids"]
    count = len(turns)
    batch = BatchedDataDict(
        {
            "input_ids": torch.tensor([ids] * count),
            "input_lengths": torch.tensor([2] * count),
            "prompt": ["pq"] * count,
            "messages": [[{"role": "user", "content": "pq"}] for _ in turns],
            "answer": [None] * count,
            "task_name": ["default"] * count,
            "row": [{"extra": n} for n in turns],
        }
    )
    policy = EchoPolicy(tokenizer, limit=limit)
    environment = environment or Countdown()
    engine = RolloutEngine(
        policy, environment, tokenizer, seed=5, max_turns=max_turns, **options
    )
    rollouts, metrics = engine.run(repeat_prompts(batch, 1), step=3)
    return rollouts, metrics, policy, tokenizer


def text_of(rollouts, tokenizer, row, mask=None):
    ids = rollouts["input_ids"][row, : rollouts["input_lengths"][row]].tolist()
    keep = rollouts["token_mask"][row].tolist()
    return tokenizer.decode(
        [t for t, m in zip(ids, keep, strict=False) if mask is None or m == mask]
    )


def test_turns_until_the_environment_ends_each_row():
    rollouts, metrics, policy, tokenizer = play([1, 3, 2])
    assert text_of(rollouts, tokenizer, 0) == "pqa!b<|im_end|>"
    # The turn that began with one left was to stop at "!".
    told = "pqa!b<|im_end|>2 lefta!b<|im_end|>1 lefta!"
    assert text_of(rollouts, tokenizer, 1) == told
    assert text_of(rollouts, tokenizer, 1, mask=0) == "pq2 left1 left"
    assert rollouts["rewards"].tolist() == [0.5, 1.5, 1.0]
    assert rollouts["num_turns"].tolist() == [1, 3, 2]
    assert rollouts["response"] == ["a!b", "a!", "a!"]
    # Only rows still alive are asked again, with exactly what they had so far.
    assert [data.size for data in policy.asked] == [3, 2, 1]
    assert metrics["turns"] == 2.0 and metrics["turns_max"] == 3.0
    assert metrics["terminated_fraction"] == 1.0
    assert metrics["overflowed_fraction"] == 0.0
    assert metrics["seen"] == 2.0
    assert metrics["response_length"] == (4 + (4 + 4 + 2) + (4 + 2)) / 3


def test_the_prefix_of_a_turn_is_what_was_sampled():
    rollouts, _, policy, _ = play([3])
    whole = rollouts["input_ids"][0].tolist()
    for data in policy.asked:
        length = int(data["input_lengths"][0])
        assert data["input_ids"][0].tolist() == whole[:length]
    mask = rollouts["token_mask"][0]
    logprobs = rollouts["generation_logprobs"][0]
    assert logprobs[mask == 0].tolist() == [0.0] * int((mask == 0).sum())
    assert logprobs[mask == 1].tolist() == [-1.0] * 4 + [-2.0] * 4 + [-3.0] * 2


def test_seeds_are_of_step_row_and_turn():
    _, _, policy, _ = play([1, 3])
    seeds = [data["sampling_seed"].tolist() for data in policy.asked]
    assert seeds[0] == [derive_seed(5, "rollout", 3, row) for row in range(2)]
    assert seeds[1] == [derive_seed(5, "rollout", 3, 1, 1)]
    assert seeds[2] == [derive_seed(5, "rollout", 3, 1, 2)]


def test_conversations_end_after_max_turns():
    rollouts, metrics, policy, _ = play([1, 9], max_turns=2)
    assert rollouts["num_turns"].tolist() == [1, 2]
    assert rollouts["rewards"].tolist() == [0.5, 1.0]
    assert metrics["terminated_fraction"] == 0.5
    assert rollouts["conversation"][1][-1] == {"role": "assistant", "content": "a!b"}


def test_an_observation_that_does_not_fit_ends_without_truncation():
    # 2 + 4 sampled + 6 of "2 left" = 12: a 13th must have room.
    fits, _, _, _ = play([3], max_total_length=13, limit=None, max_turns=2)
    assert fits["num_turns"].tolist() == [2]
    rollouts, metrics, _, _ = play([3], max_total_length=12)
    assert rollouts["num_turns"].tolist() == [1]
    assert rollouts["input_lengths"].tolist() == [6]
    assert rollouts["truncated"].tolist() == [False]
    assert metrics["overflowed_fraction"] == 1.0


def test_a_response_cut_by_the_generator_is_truncated_and_may_go_on():
    environment = Countdown()
    rollouts, _, _, tokenizer = play([2], environment=environment, limit=1)
    assert rollouts["truncated"].tolist() == [True]
    assert text_of(rollouts, tokenizer, 0) == "pqa1 lefta"
    assert [m[0]["truncated"] for _, m in environment.seen] == [True, True]


def test_the_environments_metadata_comes_back():
    environment = Countdown()
    play([2], environment=environment)
    (_, first), (logs, second) = environment.seen
    assert "left" not in first[0]
    assert second[0]["left"] == 1 and second[0]["row"] == {"extra": 2}
    assert [m["content"] for m in logs[0]] == ["pq", "a!b", "1 left", "a!"]


def test_the_first_turns_stop_strings_stand_in_the_row():
    tokenizer = character_tokenizer()
    rollouts, _, _, _ = play([1])
    assert rollouts["response"] == ["a!b"]
    policy = EchoPolicy(tokenizer)
    batch = repeat_prompts(prompts().slice(0, 1), 2)
    batch["row"] = [{"extra": 1, "stop_strings": ["!"]}, {"extra": 1}]
    engine = RolloutEngine(policy, Countdown(), tokenizer)
    rollouts, _ = engine.run(batch)
    assert rollouts["response"] == ["a!", "a!b"]
    assert rollouts["truncated"].tolist() == [False, False]


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"observations": []}, "0 observations for 1 conversations, some"),
        ({"metadata": [None] * 2}, "2 metadata for 1"),
        ({"terminateds": None}, r"terminateds of shape \[0\] for 1"),
        ({"observations": ["x"]}, "the observation 'x', expected"),
        ({"metrics": {"m": [1.0, 2.0]}}, r"metrics\['m'\] of shape \[2\] for 1"),
    ],
)
def test_unusable_answers_of_an_environment(replaced, message):
    with pytest.raises(RewardError, match=f"Countdown.step returned.*{message}"):
        play([2], environment=Countdown(**replaced))


def test_several_turns_need_a_template_that_keeps_them():
    tokenizer = character_tokenizer(FORGETFUL)
    RolloutEngine(None, None, tokenizer)
    with pytest.raises(DataError, match="rewrites earlier turns"):
        RolloutEngine(None, None, tokenizer, max_turns=2)
