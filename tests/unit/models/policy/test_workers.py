"""PolicyWorker hands a rank's calls to its engines; stop strings bring a tokenizer."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.backends import factory
from nemo_rl.backends.generation.base import SamplingParams
from nemo_rl.distributed.rank import RankInfo
from nemo_rl.models.policy.workers import PolicyWorker
from tests.fakes import models
from tests.functional.engines import policy_config
from tests.functional.ranks import run_ranks


class FakeTraining:
    """Records what it is asked."""

    def __init__(self):
        self.calls = []
        self.platform = type("P", (), {"peak_memory_bytes": lambda self: 77})()

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            result = {"grad_norm": 1.0, "micro_metrics": []}
            return result if name == "train_step" else name

        if name.startswith("__") or name == "decode":
            raise AttributeError(name)
        return call


class FakeGeneration(FakeTraining):
    pass


@pytest.fixture
def worker(monkeypatch, tmp_path):
    monkeypatch.setitem(factory.REGISTERED["training"], "megatron", FakeTraining)
    monkeypatch.setitem(factory.REGISTERED["generation"], "megatron", FakeGeneration)
    return PolicyWorker(
        RankInfo(rank=1, world_size=2),
        policy=policy_config().to_dict(),
        model_folder=str(tmp_path),
        tokenizer_folder=str(tmp_path / "not-read-without-stop-strings"),
        keep_reference=True,
        seed=9,
        threads=3,
    )


def test_worker_sets_its_engines_up(worker, tmp_path):
    name, (config,), _ = worker.training.calls[0]
    assert name == "setup"
    assert (config.rank.rank, config.seed, config.threads) == (1, 9, 3)
    assert (config.model_folder, config.keep_reference) == (tmp_path, True)
    assert config.policy == policy_config()
    assert worker.generation.calls == [("setup", (worker.training,), {})]


def test_worker_passes_calls_on(worker, tmp_path):
    worker.training.calls.clear()
    worker.generation.calls.clear()
    params = SamplingParams(max_new_tokens=1, max_total_length=2)
    assert worker.generate({"a": 1}, params) == "generate"
    assert worker.get_logprobs({"b": 1}) == "get_logprobs"
    assert worker.get_reference_logprobs({"c": 1}) == "get_reference_logprobs"
    worker.save_checkpoint(str(tmp_path), False)
    worker.load_checkpoint(str(tmp_path))
    worker.save_hf(str(tmp_path))
    worker.shutdown()
    assert worker.generation.calls == [
        ("generate", ({"a": 1}, params), {}),
        ("shutdown", (), {}),
    ]
    assert worker.training.calls == [
        ("get_logprobs", ({"b": 1},), {}),
        ("get_reference_logprobs", ({"c": 1},), {}),
        ("save_checkpoint", (tmp_path,), {"with_optimizer": False}),
        ("load_checkpoint", (tmp_path,), {}),
        ("save_hf", (tmp_path,), {}),
        ("shutdown", (), {}),
    ]


def test_worker_adds_time_and_memory_to_a_step(worker):
    result = worker.train_step({"a": 1}, "loss")
    assert worker.training.calls[-1] == ("train_step", ({"a": 1}, "loss"), {})
    assert result["grad_norm"] == 1.0
    assert result["cpu_s"] >= 0
    assert result["peak_memory_bytes"] == 77


def _with_stop_string(rank, folder, stop):
    worker = PolicyWorker(
        rank,
        policy=policy_config(generation={"stop_strings": [stop]}).to_dict(),
        model_folder=str(folder),
        tokenizer_folder=str(folder),
    )
    prompts = {
        "input_ids": torch.tensor([[5, 6, 7]]),
        "input_lengths": torch.tensor([3]),
        "sampling_seed": torch.tensor([1]),
    }
    params = SamplingParams(
        max_new_tokens=30, max_total_length=64, temperature=0.0, stop_strings=(stop,)
    )
    output = worker.generate(prompts, params)
    ids = output["output_ids"][0, 3 : output["unpadded_sequence_lengths"][0]]
    worker.shutdown()
    return worker.training.decode(ids.tolist()), output["truncated"].tolist()


def test_stop_strings_are_found_in_the_tokenizers_text(tmp_path):
    """A tokenizer of single letters; the model's own text supplies the stop string."""
    from tokenizers import Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    folder = models.save(tmp_path / "m", "llama", tied=True, layers=2, hidden=64)
    words = {chr(0x4E00 + i): i for i in range(131)}
    inner = Tokenizer(WordLevel(words, unk_token=chr(0x4E00)))
    inner.decoder = Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=chr(0x4E02))
    fast.save_pretrained(folder)
    ((text, truncated),) = run_ranks(_with_stop_string, 1, folder, "never there")
    assert truncated == [True]
    assert len(text) == 30
    stop = text[4:6]
    ((cut, truncated),) = run_ranks(_with_stop_string, 1, folder, stop)
    assert cut == text[: text.index(stop) + 2]
    assert truncated == [False]
