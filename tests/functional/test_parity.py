"""Numbers do not depend on the layout, and equal Hugging Face's where it has them.

Covers TP, PP, DP and mixes on CPU in fp32 with megatron-core's real modules. Does not
cover Transformer Engine, NCCL, bf16 or overlap of communication.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemo_rl.algorithms.grpo.config import ClippedPGLossConfig
from nemo_rl.algorithms.grpo.loss import GRPOLossFn
from nemo_rl.backends.generation.base import SamplingParams
from nemo_rl.backends.generation.megatron import MegatronInferenceBackend
from tests.fakes import models
from tests.functional.engines import engine, grpo_batch, policy_config, shard
from tests.functional.ranks import run_ranks

LAYOUTS = {
    "tp2": (2, 2, 1),
    "pp2": (2, 1, 2),
    "dp2": (2, 1, 1),
    "tp2pp2": (4, 2, 2),
    "tp2dp2": (4, 2, 1),
}
"""Name to (world size, tp, pp)."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


def model_folder(folders: Path, family: str, tied: bool) -> Path:
    folder = folders / f"{family}{'-tied' if tied else ''}"
    return folder if folder.exists() else models.save(folder, family, tied=tied)


def hf_logprobs(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits, -1)
    return logprobs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]


def _all_logprobs(rank, folder, tp, pp):
    backend = engine(rank, folder, policy_config(tp, pp))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 131, (4, 17), generator=generator)
    batch = {"input_ids": ids, "input_lengths": torch.full((4,), 17)}
    logprobs = backend.get_logprobs(batch)
    if logprobs is None:
        return None
    assert (logprobs[:, 0] == 0).all()
    return (logprobs[:, 1:] - hf_logprobs(folder, ids)).abs().max().item()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", models.FAMILIES)
def test_parity_logprobs_equal_hugging_face(folders, family, tied):
    folder = model_folder(folders, family, tied)
    for world, tp, pp in [(1, 1, 1), (2, 2, 1), (2, 1, 2)]:
        differences = run_ranks(_all_logprobs, world, folder, tp, pp)
        last = [d for d in differences if d is not None]
        assert last and max(last) <= 1e-5, (family, tied, tp, pp, differences)


def _train_three_updates(rank, folder, tp, pp, changes):
    config = policy_config(tp, pp, **changes)
    backend = engine(rank, folder, config, keep_reference=True)
    loss_fn = GRPOLossFn(ClippedPGLossConfig(reference_policy_kl_penalty=0.1))
    losses, norms = [], []
    for update in range(3):
        batch = grpo_batch(seed=update)
        result = backend.train_step(shard(batch, rank, config), loss_fn)
        norms.append(result["grad_norm"])
        losses.append(sum(m["loss"] for m in result["micro_metrics"]))
    weights = {name: w.clone() for name, w in backend.export_weights()}
    return losses, norms, weights, bool(result["micro_metrics"])


def _gathered(results, dp):
    """Loss summed over data-parallel shares, the norm, and weights of all stages."""
    reporting = [r for r in results if r[3]]
    copies = len(reporting) // dp
    losses = [sum(r[0][i] for r in reporting) / copies for i in range(3)]
    weights = {}
    for _, _, part, _ in results:
        weights.update(part)
    return losses, results[0][1], weights


@pytest.fixture(scope="module")
def reference(folders):
    """One rank, for tied Qwen2 (biases) and untied Qwen3 (q/k norm)."""
    cases = {"qwen2": True, "qwen3": False}
    return {
        family: (
            model_folder(folders, family, tied),
            _gathered(
                run_ranks(
                    _train_three_updates,
                    1,
                    model_folder(folders, family, tied),
                    1,
                    1,
                    {},
                ),
                dp=1,
            ),
        )
        for family, tied in cases.items()
    }


def assert_same(got, want, tolerance=1e-5):
    torch.testing.assert_close(got[0], want[0], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(got[1], want[1], atol=tolerance, rtol=tolerance)
    assert got[2].keys() == want[2].keys()
    for name, value in want[2].items():
        difference = (got[2][name] - value).abs().max().item()
        assert difference <= tolerance, (name, difference)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_parity_grpo_updates_over_layouts(reference, family, layout):
    world, tp, pp = LAYOUTS[layout]
    folder, want = reference[family]
    results = run_ranks(_train_three_updates, world, folder, tp, pp, {})
    assert_same(_gathered(results, dp=world // (tp * pp)), want)


@pytest.mark.parametrize(
    "changes",
    [
        {"train_micro_batch_size": 1},
        {"train_micro_batch_size": 3},
        {"train_micro_batch_size": 8},
        {"megatron_cfg": {"activation_checkpointing": True}},
        {"megatron_cfg": {"use_distributed_optimizer": False}},
        {"make_sequence_length_divisible_by": 8},
        {"logprob_chunk_size": 5},
    ],
    ids=lambda c: "-".join(f"{k}" for k in c) + str(list(c.values())[0])[:12],
)
def test_parity_grpo_updates_over_settings(reference, changes):
    folder, want = reference["qwen2"]
    results = run_ranks(_train_three_updates, 1, folder, 1, 1, changes)
    assert_same(_gathered(results, dp=1), want)


def test_parity_updates_change_every_weight(reference, folders):
    """A gradient that never arrives would make the layouts agree as well."""
    folder, (_, norms, weights) = reference["qwen2"]
    from nemo_rl.converters.formats.hf import HfWeights

    assert min(norms) > 0
    with HfWeights(folder) as before:
        unchanged = [
            name
            for name, value in weights.items()
            if torch.equal(before.tensor(name), value)
        ]
    assert not unchanged


def _generate(rank, folder, tp, pp, greedy):
    config = policy_config(tp, pp)
    backend = engine(rank, folder, config)
    sampler = MegatronInferenceBackend()
    sampler.setup(backend)
    lengths = torch.tensor([3, 7, 5, 7, 3, 6])
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 131, (6, 7), generator=generator)
    ids[3] = ids[1]  # two samples of one prompt share their prefill
    ids = torch.where(torch.arange(7)[None] < lengths[:, None], ids, 0)
    params = SamplingParams(
        max_new_tokens=9,
        max_total_length=64,
        temperature=0.0 if greedy else 1.0,
        stop_token_ids=(2, 40, 41, 42, 43),
    )
    prompts = {
        "input_ids": ids,
        "input_lengths": lengths,
        "sampling_seed": torch.arange(6) + 11,
    }
    output = sampler.generate(prompts, params)
    columns = torch.arange(output["output_ids"].shape[1])[None]
    ends = output["unpadded_sequence_lengths"]
    mask = ((columns >= lengths[:, None]) & (columns < ends[:, None])).float()
    scored = backend.get_logprobs(
        {
            "input_ids": output["output_ids"],
            "input_lengths": ends,
            "token_mask": mask,
        }
    )
    gap = None
    if scored is not None:
        gap = ((scored - output["logprobs"]) * mask).abs().max().item()
    return output, gap


@pytest.mark.parametrize("layout", ["one", *LAYOUTS])
def test_parity_generation_logprobs_equal_the_training_forward(folders, layout):
    world, tp, pp = LAYOUTS.get(layout, (1, 1, 1))
    folder = model_folder(folders, "llama", tied=True)
    results = run_ranks(_generate, world, folder, tp, pp, False)
    gaps = [gap for _, gap in results if gap is not None]
    assert gaps and max(gaps) <= 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parity_samples_are_the_same_under_every_layout(folders, layout):
    folder = model_folder(folders, "llama", tied=True)
    world, tp, pp = LAYOUTS[layout]
    (want, _), *_ = run_ranks(_generate, 1, folder, 1, 1, False)
    for got, _ in run_ranks(_generate, world, folder, tp, pp, False):
        assert torch.equal(got["output_ids"], want["output_ids"])
        assert torch.equal(got["truncated"], want["truncated"])


def test_parity_greedy_tokens_equal_hugging_face(folders):
    import transformers

    folder = model_folder(folders, "llama", tied=True)
    ((output, _),) = run_ranks(_generate, 1, folder, 1, 1, True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )
    starts = [3, 7, 5, 7, 3, 6]
    for row, start in enumerate(starts):
        end = int(output["unpadded_sequence_lengths"][row])
        prompt = output["output_ids"][row : row + 1, :start]
        with torch.no_grad():
            want = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=end - start,
                do_sample=False,
                eos_token_id=None,
            )
        assert want[0].tolist() == output["output_ids"][row, :end].tolist()


def test_parity_with_gradients_reduced_during_the_backward_pass(reference):
    folder, want = reference["qwen2"]
    changes = {"megatron_cfg": {"overlap_grad_reduce": True}}
    results = run_ranks(_train_three_updates, 2, folder, 1, 1, changes)
    assert_same(_gathered(results, dp=2), want)
