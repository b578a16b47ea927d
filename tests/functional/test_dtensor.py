"""The DTensor engine computes what the Megatron engine computes, under every layout.

Covers FSDP2 over two ranks, TP2, and both engines on the same weights, on CPU in fp32
over gloo; bf16 with fp32 masters on one rank. Does not cover NCCL or cpu_offload.
Every group of ranks runs several cases one after the other: to start it costs most.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from nemo_rl.algorithms.distillation.loss import DistillationLossFn
from nemo_rl.algorithms.grpo.config import ClippedPGLossConfig
from nemo_rl.algorithms.grpo.loss import GRPOLossFn
from nemo_rl.backends.factory import get_generation_backend
from nemo_rl.backends.generation.base import SamplingParams
from nemo_rl.config.backends import generation_backend
from tests.fakes import models
from tests.functional import tiny_task
from tests.functional.engines import (
    dtensor_config,
    engine,
    grpo_batch,
    policy_config,
    shard,
    with_counts,
)
from tests.functional.ranks import RankFailure, run_ranks

FAMILIES = {"llama": False, "qwen2": True, "qwen3": False}
"""Family to whether embeddings are tied: with biases, with q/k norm, with neither."""
ONE = {
    "plain": {},
    "recomputed": {"dtensor_cfg": {"activation_checkpointing": True}},
    "micro 3": {"train_micro_batch_size": 3, "logprob_chunk_size": 5},
    "padded": {"make_sequence_length_divisible_by": 8},
}
"""Settings that change no number."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {
        family: models.save(base / family, family, tied=tied, layers=2)
        for family, tied in FAMILIES.items()
    }


def _life(rank, folder, config):
    """Log-probs, three updates, and the weights they leave."""
    backend = engine(rank, folder, config)
    loss_fn = GRPOLossFn(ClippedPGLossConfig(reference_policy_kl_penalty=0.1))
    logprobs = backend.get_logprobs(grpo_batch())
    losses, norms = [], []
    for update in range(3):
        batch = shard(grpo_batch(seed=update), rank, config)
        result = backend.train_step(batch, loss_fn)
        norms.append(result["grad_norm"])
        losses.append(sum(m["loss"] for m in result["micro_metrics"]))
    weights = {name: w.clone() for name, w in backend.export_weights()}
    return logprobs, torch.tensor(losses), torch.tensor(norms), weights


def _one_after_another(function, rank, cases):
    """Cases in one process group; Megatron keeps groups of its own besides."""
    from megatron.core import parallel_state

    results = []
    for case in cases:
        results.append(function(rank, *case))
        if parallel_state.is_initialized():
            parallel_state.destroy_model_parallel()
    return results


def _lives(rank, cases):
    return _one_after_another(_life, rank, cases)


@pytest.fixture(scope="module")
def megatron(folders):
    """By family: log-probs, losses, norms and weights of the Megatron engine."""
    cases = [(folder, policy_config()) for folder in folders.values()]
    (lives,) = run_ranks(_lives, 1, cases)
    return dict(zip(folders, lives, strict=True))


def assert_same(got, want, tolerance=1e-5):
    for mine, theirs in zip(got[:3], want[:3], strict=True):
        torch.testing.assert_close(mine, theirs, atol=tolerance, rtol=tolerance)
    assert got[3].keys() == want[3].keys()
    for name, value in want[3].items():
        difference = (got[3][name] - value).abs().max().item()
        assert difference <= tolerance, (name, difference)


def test_dtensor_equals_megatron_on_one_rank(folders, megatron):
    cases = [(folder, dtensor_config()) for folder in folders.values()]
    changed = [(folders["qwen2"], dtensor_config(**c)) for c in ONE.values()]
    (lives,) = run_ranks(_lives, 1, [*cases, *changed])
    for family, got in zip(folders, lives, strict=False):
        assert_same(got, megatron[family])
    for got in lives[len(cases) :]:
        assert_same(got, megatron["qwen2"])


def test_dtensor_equals_megatron_on_two_ranks(folders, megatron):
    """TP2 and FSDP over two ranks, in one group."""
    layouts = [(family, tp) for family in folders for tp in (2, 1)]
    cases = [(folders[family], dtensor_config(tp)) for family, tp in layouts]
    results = run_ranks(_lives, 2, cases)
    for case, (family, tp) in enumerate(layouts):
        parts = [ranks[case] for ranks in results]
        # Ranks of one replica report the same loss, replicas report shares of it.
        loss = sum(part[1] for part in parts) / tp
        for part in parts:
            assert_same((part[0], loss, *part[2:]), megatron[family])


OTHERS = {
    "gemma2": models.tiny_config("gemma2", layers=2),
    "gemma3": models.tiny_config("gemma3", tied=True, layers=3),
    "gpt2": transformers.GPT2Config(vocab_size=131, n_embd=64, n_layer=2, n_head=4),
    "granite": transformers.GraniteConfig(
        vocab_size=131,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        logits_scaling=3.0,
    ),
}
"""Bounded scores, windows, learned positions, and a family that Megatron lacks."""


def _scores(rank, folders):
    """Largest difference of log-probs from those of transformers itself."""
    differences = {}
    for folder in folders:
        backend = engine(rank, folder, dtensor_config(max_total_sequence_length=64))
        batch = grpo_batch()
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        with torch.no_grad():
            scores = torch.log_softmax(model(batch["input_ids"]).logits, -1)
        chosen = scores[:, :-1].gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        want = chosen * batch["token_mask"][:, 1:]
        got = backend.get_logprobs(batch)[:, 1:]
        differences[folder.name] = (got - want).abs().max().item()
    return differences


def test_dtensor_runs_what_transformers_runs(tmp_path):
    for name, config in OTHERS.items():
        models.build(config).save_pretrained(tmp_path / name)
    (differences,) = run_ranks(_scores, 1, [tmp_path / name for name in OTHERS])
    assert differences.keys() == OTHERS.keys()
    assert max(differences.values()) <= 1e-5, differences


class Entropy:
    """Two rows at once, and the entropy of what each token was drawn from."""

    rows_per_sample = 2
    needs_entropy = True

    def __call__(self, batch, output):
        mask = batch["token_mask"] * batch["sample_mask"][:, None]
        share = -(output.entropy * mask).sum() / batch["global_valid_tokens"]
        rows = torch.tensor(float(len(mask)))
        outside = (output.entropy * (1 - batch["token_mask"])).abs().sum()
        return share, {"rows": rows, "outside": outside}


def _entropies(rank, folder):
    config = dtensor_config(generation={"temperature": 2.0}, logprob_chunk_size=7)
    backend = engine(rank, folder, config)
    result = backend.train_step(with_counts(grpo_batch()), Entropy())
    batch = grpo_batch()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )
    with torch.no_grad():
        scores = torch.log_softmax(model(batch["input_ids"]).logits / 2.0, -1)
    entropy = -(scores.exp() * scores).sum(-1)[:, :-1]
    mask = batch["token_mask"][:, 1:] * batch["sample_mask"][:, None]
    return result, -((entropy * mask).sum() / mask.sum()).item()


def test_dtensor_loss_gets_entropy_and_whole_samples(folders):
    ((result, want),) = run_ranks(_entropies, 1, folders["llama"])
    micro = result["micro_metrics"]
    assert [m["rows"] for m in micro] == [4.0, 4.0]
    assert sum(m["loss"] for m in micro) == pytest.approx(want, abs=1e-5)
    assert all(m["outside"] == 0 for m in micro)
    assert result["grad_norm"] > 0


def _distilled(rank, folder, config, teacher):
    """Two updates towards a teacher's five likeliest tokens."""
    backend = engine(rank, folder, config, teacher_folder=teacher)
    losses, norms = [], []
    for update in range(2):
        batch = shard(grpo_batch(seed=update), rank, config)
        result = backend.train_step(batch, DistillationLossFn(topk=5))
        losses.append(sum(m["loss"] for m in result["micro_metrics"]))
        norms.append(result["grad_norm"])
    weights = {name: w.clone() for name, w in backend.export_weights()}
    return torch.zeros(1), torch.tensor(losses), torch.tensor(norms), weights


def _distillations(rank, cases):
    return _one_after_another(_distilled, rank, cases)


def test_dtensor_learns_from_a_teacher_as_megatron_does(folders, tmp_path):
    teacher = models.save(tmp_path / "teacher", "qwen3", layers=3, seed=7)
    folder = folders["llama"]
    (want,), *_ = run_ranks(_distillations, 1, [(folder, policy_config(), teacher)])
    for part in run_ranks(_distillations, 2, [(folder, dtensor_config(2), teacher)]):
        assert_same(part[0], want)
    smaller = models.save(tmp_path / "smaller", "llama", layers=1, vocab=64)
    with pytest.raises(RankFailure, match="has a vocabulary of 64 tokens, the policy"):
        run_ranks(_distillations, 1, [(folder, dtensor_config(), smaller)])
    with pytest.raises(RankFailure, match="give Policy a teacher"):
        run_ranks(_distillations, 1, [(folder, dtensor_config(), None)])


PARAMS = {"max_new_tokens": 9, "max_total_length": 64, "stop_token_ids": (2, 40, 41)}


def _sampled(rank, folder, config, params):
    backend = engine(rank, folder, config)
    sampler = get_generation_backend(generation_backend(config))
    sampler.setup(backend)
    lengths = torch.tensor([3, 7, 5, 7, 3, 6])
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 131, (6, 7), generator=generator)
    ids[3] = ids[1]  # two samples of one prompt share their prefill
    ids = torch.where(torch.arange(7)[None] < lengths[:, None], ids, 0)
    prompts = {
        "input_ids": ids,
        "input_lengths": lengths,
        "sampling_seed": torch.arange(6) + 11,
    }
    if config.dtensor_cfg.tensor_parallel_size < rank.world_size and rank.rank:
        # Replicas need not sample equally long: no pass may wait for the other's.
        params = {**params, "max_new_tokens": 4}
    output = sampler.generate(prompts, SamplingParams(**params))
    # The next update must see what is written, not what was gathered for sampling.
    loss_fn = GRPOLossFn(ClippedPGLossConfig(reference_policy_kl_penalty=0.1))
    backend.train_step(shard(grpo_batch(), rank, config), loss_fn)
    again = sampler.generate(prompts, SamplingParams(**params))
    columns = torch.arange(again["output_ids"].shape[1])[None]
    ends = again["unpadded_sequence_lengths"]
    starts = prompts["input_lengths"]
    mask = ((columns >= starts[:, None]) & (columns < ends[:, None])).float()
    scored = backend.get_logprobs(
        {"input_ids": again["output_ids"], "input_lengths": ends, "token_mask": mask}
    )
    gap = ((scored - again["logprobs"]) * mask).abs().max().item()
    return output, gap


def _samples(rank, cases):
    return _one_after_another(_sampled, rank, cases)


def test_hf_generation_samples_what_megatron_samples(folders):
    folder = folders["qwen3"]
    greedy = {**PARAMS, "temperature": 0.0, "batch_size": 4}
    every = [PARAMS, greedy]
    (want,) = run_ranks(_samples, 1, [(folder, policy_config(), p) for p in every])
    (one,) = run_ranks(_samples, 1, [(folder, dtensor_config(), p) for p in every])
    cases = [(folder, dtensor_config(2), PARAMS), (folder, dtensor_config(), greedy)]
    two = run_ranks(_samples, 2, cases)
    assert want[0][0]["output_ids"].tolist() != want[1][0]["output_ids"].tolist()
    for case, (output, gap) in enumerate([*one, *two[0]]):
        expected = want[case % 2][0]
        for key in ("output_ids", "truncated", "unpadded_sequence_lengths"):
            assert torch.equal(output[key], expected[key]), (case, key)
        torch.testing.assert_close(output["logprobs"], expected["logprobs"])
        assert gap <= 1e-4
    for case, (output, gap) in enumerate(two[1]):
        assert gap <= 1e-4
        width = output["output_ids"].shape[1]
        expected = want[case % 2][0]["output_ids"][:, :width]
        kept = output["output_ids"] != 0
        assert torch.equal(output["output_ids"][kept], expected[kept])


def _bf16(rank, folder):
    kwargs = {"kwargs": {"lr": 1e-5, "weight_decay": 0.0}}
    config = dtensor_config(precision="bfloat16", optimizer=kwargs)
    backend = engine(rank, folder, config, keep_reference=True)
    before = {name: w.clone() for name, w in backend.sharded.local_weights().items()}
    loss_fn = GRPOLossFn(ClippedPGLossConfig(reference_policy_kl_penalty=0.1))
    first = backend.get_logprobs(grpo_batch())
    result = backend.train_step(with_counts(grpo_batch(seed=0)), loss_fn)
    after = backend.sharded.local_weights()
    moved = max((after[name] - before[name]).abs().max().item() for name in before)
    reference = backend.get_reference_logprobs(grpo_batch())
    exported = {name: w.dtype for name, w in backend.export_weights()}
    dtypes = {w.dtype for w in after.values()}
    return result, moved, dtypes, set(exported.values()), first, reference


def test_dtensor_bfloat16_keeps_masters_in_fp32(folders, megatron):
    ((result, moved, dtypes, exported, first, reference),) = run_ranks(
        _bf16, 1, folders["llama"]
    )
    assert dtypes == {torch.float32} and exported == {torch.bfloat16}
    # An update this small would vanish in a bf16 weight near 1.
    assert 0 < moved < 2e-5
    assert torch.equal(first, reference)
    want = megatron["llama"]
    assert (first - want[0]).abs().max() < 0.2
    assert sum(m["loss"] for m in result["micro_metrics"]) == pytest.approx(
        want[1][0].item(), abs=0.1
    )


def _grpo(_, folder):
    """One process: the recipe's policy in place of workers over Ray."""
    from nemo_rl.algorithms import GRPO
    from nemo_rl.algorithms.grpo.config import GRPOMasterConfig
    from nemo_rl.distributed.local import LocalCluster
    from nemo_rl.models.policy import Policy

    model = str(tiny_task.make_model(folder / "model", sft_steps=0))
    recipe = tiny_task.recipe(Path(model), workers=1)
    recipe["policy"] |= {
        "dtensor_cfg": {"enabled": True},
        "megatron_cfg": {},
        "train_micro_batch_size": 32,
    }
    recipe["grpo"] |= {
        "num_prompts_per_step": 8,
        "num_generations_per_prompt": 4,
        "max_num_steps": 3,
        "val_period": 0,
        "val_at_start": False,
    }
    recipe["loss_fn"]["reference_policy_kl_penalty"] = 0.01
    recipe["checkpointing"]["checkpoint_dir"] = str(folder / "saved")
    recipe["logger"] |= {"log_dir": str(folder / "logs"), "console": "off"}
    config = GRPOMasterConfig.from_mapping(recipe)
    policy = Policy(LocalCluster(), config.policy)
    result = GRPO(policy, config).train(reward_fn=_letters)
    further = config.merged({"grpo": {"max_num_steps": 4}})
    resumed = GRPO(Policy(LocalCluster(), config.policy), further).train(
        reward_fn=_letters
    )
    steps = [row["step"] for row in resumed.history]
    return result.history, steps, str(resumed.hf_export_path)


def _letters(prompt, response):
    return float(sum(character.isalpha() for character in response))


def test_dtensor_grpo_with_hf_generation_in_one_process(tmp_path):
    ((history, steps, export),) = run_ranks(_grpo, 1, tmp_path)
    for row in history:
        # The sampler's log-probs are the trainer's, also after updates.
        assert row["sampling_importance_ratio"] == pytest.approx(1.0, abs=1e-4)
        assert row["grad_norm"] > 0
    assert history[-1]["train_tflops_per_worker"] > 0
    assert steps == [4]
    model = transformers.AutoModelForCausalLM.from_pretrained(export)
    assert model.config.num_hidden_layers == 2
