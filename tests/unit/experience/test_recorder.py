"""Completions become lines without padding, and a resume cuts them."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest

from nemo_rl.experience.recorder import RolloutRecorder, rollout_rows


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def batch():
    return {
        "prompt": ["1 + 1 =", "2 + 2 ="],
        "response": ["2", "5"],
        "answer": ["2", "4"],
        "rewards": np.array([1.0, 0.0], dtype=np.float32),
        "truncated": np.array([False, True]),
        "group": np.array([0, 1]),
        "input_ids": np.array([[5, 6, 7, 0, 0], [5, 6, 8, 9, 3]]),
        "prompt_lengths": np.array([2, 3]),
        "input_lengths": np.array([3, 5]),
        "generation_logprobs": np.array(
            [[0, 0, -0.5, 0, 0], [0, 0, 0, -0.25, -1.0]], dtype=np.float32
        ),
    }


def test_rows_hold_one_completion_without_padding():
    assert rollout_rows(batch()) == [
        {
            "group": 0,
            "prompt": "1 + 1 =",
            "response": "2",
            "answer": "2",
            "reward": 1.0,
            "truncated": False,
            "prompt_ids": [5, 6],
            "response_ids": [7],
            "logprobs": [-0.5],
        },
        {
            "group": 1,
            "prompt": "2 + 2 =",
            "response": "5",
            "answer": "4",
            "reward": 0.0,
            "truncated": True,
            "prompt_ids": [5, 6, 8],
            "response_ids": [9, 3],
            "logprobs": [-0.25, -1.0],
        },
    ]


def test_rows_of_a_batch_with_the_least_fields():
    least = {"prompt": ["a"], "response": ["b"], "rewards": [1.0]}
    assert rollout_rows(least) == [{"prompt": "a", "response": "b", "reward": 1.0}]


def test_rows_of_tensors():
    torch = pytest.importorskip("torch")
    tensors = {
        key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for key, value in batch().items()
    }
    assert rollout_rows(tensors) == rollout_rows(batch())


def test_a_conversation_of_several_turns_can_be_read():
    said = [
        {"role": "assistant", "content": "up"},
        {"role": "user", "content": "wall"},
        {"role": "assistant", "content": "left"},
    ]
    several = {
        **batch(),
        "num_turns": np.array([1, 2]),
        "conversation": [[said[0]], said],
        "token_mask": np.array([[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]),
    }
    first, second = rollout_rows(several)
    assert first == rollout_rows(batch())[0]
    assert second["num_turns"] == 2 and second["conversation"] == said
    assert second["response_ids"] == [9, 3] and second["token_mask"] == [0, 1]


def test_lines_are_flushed_and_strict_json(tmp_path):
    path = tmp_path / "logs" / "rollouts.jsonl"
    recorder = RolloutRecorder(path)
    recorder.record(3, rollout_rows(batch()))
    recorder.record(3, [{"reward": math.nan, "ids": np.array([1])}], split="val")
    first, _, last = read(path)
    assert (first["step"], first["split"], first["response"]) == (3, "train", "2")
    assert last == {"step": 3, "split": "val", "reward": None, "ids": [1]}
    recorder.close()
    recorder.record(4, rollout_rows(batch()))
    assert len(read(path)) == 3


def test_a_resume_cuts_and_a_fresh_run_moves_aside(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    recorder = RolloutRecorder(path)
    for step in (1, 2, 3):
        recorder.record(step, [{"reward": step}])
    recorder.close()
    resumed = RolloutRecorder(path, 2)
    resumed.record(3, [{"reward": 30}])
    resumed.close()
    assert [row["reward"] for row in read(path)] == [1, 2, 30]
    RolloutRecorder(path).close()
    assert read(path) == []
    assert len(read(tmp_path / "rollouts.earlier-1.jsonl")) == 3


def test_disabled_writes_nothing(tmp_path):
    recorder = RolloutRecorder(tmp_path / "rollouts.jsonl", enabled=False)
    recorder.record(1, rollout_rows(batch()))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_the_record_not_the_training(caplog):
    from pathlib import Path

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    recorder = RolloutRecorder("unused", enabled=False)
    recorder._file = open("/dev/full", "w")  # noqa: SIM115
    with caplog.at_level(logging.WARNING):
        recorder.record(1, rollout_rows(batch()))
        recorder.record(2, rollout_rows(batch()))
    assert caplog.text.count("No space left on device") == 1
