"""AheadSource under a real trainer: what is sampled ahead, when, with which weights.

The policy is a table of bigrams and its generator a thread-safe stream of tokens that
takes random time; real models are in tests/functional/test_async_grpo.py.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_rl.algorithms.grpo.trainer import GRPOTrainer
from nemo_rl.experience.ahead import AheadSource
from nemo_rl.models.policy.paired import PairedPolicy
from nemo_rl.trainers.callbacks import Callback
from nemo_rl.utils.exceptions import ConfigurationError, RewardError
from tests.fakes import models
from tests.fakes.tables import TableGenerator, TablePolicy
from tests.fakes.tokenizers import character_tokenizer

ROWS = [{"prompt": f"{n:02d}"} for n in range(22)]
P, G = 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    character_tokenizer().save_pretrained(folder)
    models.tiny_config("llama").save_pretrained(folder)
    return folder


def letters(prompt: str, response: str) -> float:
    return float(sum(character.isalpha() for character in response))


class Run:
    """A trainer, its parts and its result; delays are drawn from ``seed``."""

    def __init__(self, folder: Path, out: Path, steps: int, **ahead: Any) -> None:
        extra = ahead.pop("sections", {})
        delay = ahead.pop("delay_s", 0.0)
        self.policy = TablePolicy(len(character_tokenizer()), delay_s=3 * delay)
        self.generator = TableGenerator(6, slots=8, delay_s=delay)
        self.paired = PairedPolicy(self.policy, self.generator)
        self.paired.stream = self.generator if ahead.pop("stream", True) else None
        grpo = {
            "num_prompts_per_step": P,
            "num_generations_per_prompt": G,
            "max_num_steps": steps,
            "max_num_epochs": 90,
            "async_grpo": {"enabled": True, **ahead},
            **extra.pop("grpo", {}),
        }
        self.trainer = GRPOTrainer(
            {
                "policy": {
                    "model_name": str(folder),
                    "train_micro_batch_size": 1,
                    "max_total_sequence_length": 32,
                    "generation": {
                        "max_new_tokens": 6,
                        "backend": "vllm",
                        "colocated": {
                            "enabled": False,
                            "resources": {"cpu_workers_per_node": 1},
                        },
                    },
                },
                "grpo": grpo,
                "loss_fn": {
                    "reference_policy_kl_penalty": 0.0,
                    "use_importance_sampling_correction": True,
                    "truncated_importance_sampling_ratio": 2.0,
                },
                "logger": {
                    "console": "off",
                    "tensorboard_enabled": False,
                    "log_dir": str(out / "logs"),
                },
                "checkpointing": {
                    "checkpoint_dir": str(out / "checkpoints"),
                    "metric_name": None,
                    "export_hf": False,
                    "keep_top_k": 99,
                    "save_period": 1000,
                    **extra.pop("checkpointing", {}),
                },
                "cluster": {"gpus_per_node": 0, "cpu_workers_per_node": 2},
                **extra,
            },
            policy=self.paired,
        )

    def fit(self, reward_fn: Any = letters, **kwargs: Any) -> Run:
        self.result = self.trainer.fit(dataset=ROWS, reward_fn=reward_fn, **kwargs)
        return self

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        """What was trained on, prompt by prompt, in order."""
        return [
            tuple(row[:2])
            for batch in self.policy.trained
            for row in batch["input_ids"][::G].tolist()
        ]

    def same_as(self, other: Run) -> bool:
        pairs = zip(self.policy.trained, other.policy.trained, strict=True)
        return all(
            set(one) == set(two) and all(torch.equal(one[k], two[k]) for k in one)
            for one, two in pairs
        ) and torch.equal(self.policy.table, other.policy.table)


def plain(folder: Path, out: Path, steps: int) -> Run:
    return Run(folder, out, steps, enabled=False).fit()


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("rollouts-")]


def test_without_staleness_it_is_the_synchronous_trainer(
    folder, tmp_path, monkeypatch
) -> None:
    straight = plain(folder, tmp_path / "plain", 5)
    zero = Run(folder, tmp_path / "zero", 5, max_staleness_steps=0).fit()
    assert zero.same_as(straight)
    # The threads with nothing to run ahead of do the same.
    config = type(zero.trainer.section.async_grpo)
    monkeypatch.setattr(config, "samples_ahead", property(lambda self: self.enabled))
    threaded = Run(folder, tmp_path / "threaded", 5, max_staleness_steps=0).fit()
    assert isinstance(threaded.trainer.source, AheadSource)
    assert threaded.same_as(straight)
    assert threaded.result.metrics["staleness_max"] == 0


@pytest.mark.parametrize("in_flight", [False, True])
@pytest.mark.parametrize("staleness", [1, 3])
def test_no_token_is_older_than_allowed_whatever_the_delays(
    folder, tmp_path, in_flight, staleness
) -> None:
    random.seed(staleness)
    run = Run(
        folder,
        tmp_path,
        12,
        max_staleness_steps=staleness,
        in_flight_weight_updates=in_flight,
        delay_s=0.004,
    ).fit()
    history = run.result.history
    assert max(row["staleness_max"] for row in history) <= staleness
    assert sum(row["staleness_mean"] for row in history) > 0
    assert history[0]["staleness_max"] == 0
    # The same prompts in the same order as without running ahead.
    assert run.prompts == plain(folder, tmp_path / "plain", 12).prompts
    assert threads() == []


def test_weights_that_change_in_flight_sample_parts_of_one_response(
    folder, tmp_path
) -> None:
    mixed = []

    class Watch(Callback):
        def on_step_end(self, trainer, step, metrics):
            mixed.append(metrics["staleness_max"] - metrics["staleness_mean"])

    random.seed(1)
    options = {"max_staleness_steps": 2, "delay_s": 0.01}
    run = Run(folder, tmp_path, 14, in_flight_weight_updates=True, **options)
    seen = []
    sample = run.trainer._add_logprobs
    run.trainer._add_logprobs = lambda batch: sample(batch)
    record = run.trainer.__class__._make_source

    def keep(self):
        source = record(self)
        source._record = lambda step, rollouts: seen.append(rollouts)
        return source

    run.trainer._make_source = keep.__get__(run.trainer)
    run.fit()
    spans = [
        row[row >= 0].unique().numel()
        for rollouts in seen
        for row in rollouts["token_versions"]
    ]
    assert max(spans) > 1
    for rollouts in seen:
        sampled = rollouts["token_mask"] > 0
        assert ((rollouts["token_versions"] >= 0) == sampled).all()


def test_deterministic_runs_do_not_depend_on_timing(folder, tmp_path) -> None:
    options = {"max_staleness_steps": 2, "deterministic": True}
    random.seed(1)
    slow = Run(folder, tmp_path / "a", 8, delay_s=0.004, **options).fit()
    random.seed(2)
    fast = Run(folder, tmp_path / "b", 8, delay_s=0.0005, **options).fit()
    assert slow.same_as(fast)
    ages = [row["staleness_mean"] for row in fast.result.history]
    assert ages == [0, 1, 2, 2, 2, 2, 2, 2]


def test_a_deterministic_run_resumes_to_the_bit(folder, tmp_path) -> None:
    options = {"max_staleness_steps": 2, "deterministic": True}
    straight = Run(folder, tmp_path / "a", 7, **options).fit()
    first = Run(folder, tmp_path / "b", 3, **options)
    first.trainer.total = None
    # Stopped and not at its end, so that there is something ahead.
    long = Run(folder, tmp_path / "c", 7, **options)

    class Stop(Callback):
        def on_step_end(self, trainer, step, metrics):
            if step == 3:
                trainer.stop("enough")

    long.fit(callbacks=[Stop()])
    assert long.result.steps == 3
    rest = Run(folder, tmp_path / "c", 7, **options).fit()
    assert rest.result.steps == 7
    long.policy.trained += rest.policy.trained
    long.policy.table = rest.policy.table
    assert long.same_as(straight)


def test_it_learns_from_old_responses(folder, tmp_path) -> None:
    options = {"max_staleness_steps": 2, "in_flight_weight_updates": True}
    for name, right in (("on", True), ("off", False)):
        run = Run(folder, tmp_path / name, 60, **options)
        run.policy.rate = 100.0 if right else 0.0
        run.fit()
        rewards = [row["reward"] for row in run.result.history]
        learned = sum(rewards[-10:]) > 1.3 * sum(rewards[:10])
        assert learned == right, rewards


def test_what_is_over_sampled_goes_on_in_the_next_batch(folder, tmp_path) -> None:
    random.seed(3)
    run = Run(
        folder,
        tmp_path,
        16,
        max_staleness_steps=3,
        over_sampling=1.7,
        in_flight_weight_updates=True,
        delay_s=0.002,
    ).fit()
    history = run.result.history
    assert max(row["staleness_max"] for row in history) <= 3
    assert sum(row["aborted_responses"] for row in history) > 0
    assert sum(row["continued_responses"] for row in history[1:]) > 0
    # No prompt comes twice in an epoch, and none waits for more than a batch: those
    # of three batches are among those of the first five.
    prompts = run.prompts
    assert len(set(prompts[:18])) == 18
    begun = [tuple(r.prompt_ids) for r in run.generator.submitted]
    order = list(dict.fromkeys(begun))
    assert set(order[: P * 3]) <= set(prompts[: P * 4])
    # A continued response is as long as any other may be, and its tokens are whole.
    for request in run.generator.submitted:
        assert len(request.begun_ids) < 6


def test_an_error_in_a_thread_ends_the_run(folder, tmp_path) -> None:
    run = Run(folder, tmp_path, 50, max_staleness_steps=2, delay_s=0.001)
    run.generator.fail_at = 60
    started = time.monotonic()
    with pytest.raises(OSError, match="machine is gone"):
        run.fit()
    assert time.monotonic() - started < 20
    assert threads() == []


def test_an_environment_that_fails_ends_the_run(folder, tmp_path) -> None:
    calls = []

    def reward(prompt: str, response: str) -> float:
        calls.append(threading.current_thread().name)
        if len(calls) > 100:
            raise KeyError("mine")
        return letters(prompt, response)

    with pytest.raises(RewardError, match="mine"):
        Run(folder, tmp_path, 50, max_staleness_steps=2).fit(reward)
    assert all(name.startswith("rollouts-") for name in calls)
    assert threads() == []


def test_environments_are_asked_by_one_thread_at_a_time(folder, tmp_path) -> None:
    inside, most = [], []

    def reward(prompts: list[str], responses: list[str]) -> list[float]:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.003)
        inside.pop()
        return [letters(p, r) for p, r in zip(prompts, responses, strict=True)]

    sections = {"grpo": {"val_period": 2, "val_at_start": True}}
    run = Run(folder, tmp_path, 8, max_staleness_steps=3, sections=sections)
    run.fit(reward, val_dataset=ROWS[:4])
    assert max(most) == 1
    assert len(run.result.validation_history) == 5


def test_interrupted_it_takes_everything_down(folder, tmp_path) -> None:
    class Interrupt(Callback):
        def on_step_end(self, trainer, step, metrics):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(folder, tmp_path, 9, delay_s=0.002).fit(callbacks=[Interrupt()])
    assert threads() == []


def test_a_generator_of_whole_batches_runs_ahead_too(folder, tmp_path) -> None:
    run = Run(folder, tmp_path, 8, max_staleness_steps=2, stream=False).fit()
    assert max(row["staleness_max"] for row in run.result.history) <= 2
    for key, value in {"in_flight_weight_updates": True, "over_sampling": 1.5}.items():
        with pytest.raises(ConfigurationError, match=f"async_grpo.{key}"):
            Run(folder, tmp_path / key, 2, stream=False, **{key: value}).fit()


def test_the_metrics_say_who_waits(folder, tmp_path) -> None:
    run = Run(folder, tmp_path, 4, delay_s=0.002).fit()
    for row in run.result.history:
        assert 0 <= row["trainer_idle_fraction"] <= 1
        assert 0 <= row["generation_idle_fraction"] <= 1
        assert row["timing/generation_wait_s"] >= 0
        assert row["rollout_s"] > 0
    assert run.result.history[-1]["buffer_depth"] <= 1


MANY = [{"prompt": f"{n:03d}"} for n in range(400)]
STEPS = 12


def _until_the_end(folder: Path, out: Path, options: dict[str, Any]) -> None:
    # Forked, so that a start takes no time: the parent's delays are not the child's.
    random.seed()
    sections = {"checkpointing": {"save_period": 1}}
    run = Run(folder, out, STEPS, delay_s=0.004, sections=sections, **options)
    run.trainer.fit(dataset=MANY, reward_fn=letters)


def _recorded(out: Path) -> list[str]:
    """Prompts that were trained on, in order, of the run and all its resumes."""
    lines = (out / "logs" / "rollouts.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)
    assert len(rows) == STEPS * P * G
    return [row["prompt"] for row in rows][::G]


def _kill_and_resume(folder: Path, out: Path, options: dict[str, Any]) -> int:
    """Run to the end through kills at random moments; how many there were."""
    moments, kills = random.Random(len(options)), 0
    saved = out / "checkpoints"
    while True:
        child = multiprocessing.get_context("fork").Process(
            target=_until_the_end, args=(folder, out, options)
        )
        child.start()
        if kills < 8:
            wanted = len(list(saved.glob("step_*"))) + moments.randint(0, 2)
            while child.is_alive() and len(list(saved.glob("step_*"))) < wanted:
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.05))
        else:
            child.join(60)
        if child.exitcode is not None:
            assert child.exitcode == 0
            return kills
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1


def test_killed_at_any_moment_it_loses_and_repeats_no_prompt(folder, tmp_path) -> None:
    options = {"max_staleness_steps": 2, "in_flight_weight_updates": True}
    assert _kill_and_resume(folder, tmp_path / "killed", options) > 2
    straight = Run(folder, tmp_path / "straight", STEPS, enabled=False)
    straight.trainer.fit(dataset=MANY, reward_fn=letters)
    assert _recorded(tmp_path / "killed") == _recorded(tmp_path / "straight")


def test_killed_while_over_sampling_it_loses_and_repeats_no_prompt(
    folder, tmp_path
) -> None:
    options = {"max_staleness_steps": 2, "over_sampling": 1.7}
    assert _kill_and_resume(folder, tmp_path / "killed", options) > 2
    prompts = _recorded(tmp_path / "killed")
    assert len(set(prompts)) == len(prompts)
    straight = Run(folder, tmp_path / "straight", STEPS, enabled=False)
    straight.trainer.fit(dataset=MANY, reward_fn=letters)
    order = _recorded(tmp_path / "straight")
    # What batch t has drawn is trained on by step t + 2 at the latest.
    assert set(order[: (STEPS - 1) * P]) <= set(prompts)


def test_finished_rollouts_are_saved_and_used_again(folder, tmp_path) -> None:
    class Stop(Callback):
        def on_step_end(self, trainer, step, metrics):
            if step == 3:
                schedule = trainer.source._turnstile.schedule
                while schedule.may_start() or schedule.running:
                    time.sleep(0.01)
                trainer.stop("enough")

    options = {"max_staleness_steps": 2}
    run = Run(folder, tmp_path, 8, **options).fit(callbacks=[Stop()])
    sampled = len(run.generator.submitted)
    assert sampled > 3 * P * G
    rest = Run(folder, tmp_path, 8, **options).fit()
    assert sampled + len(rest.generator.submitted) == 8 * P * G
    assert run.prompts + rest.prompts == plain(folder, tmp_path / "p", 8).prompts
    assert rest.result.history[0]["staleness_mean"] > 0
