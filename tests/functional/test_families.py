"""Every model family: Megatron computes what transformers computes, from one folder.

Covers fp32 on CPU with megatron-core's local modules. Does not cover Transformer
Engine and its grouped experts.
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
from tests.functional.ranks import RankFailure, run_ranks

SAMPLED = ("mistral", "gemma2", "gemma3", "deepseek_v2", "deepseek_v3", "phi3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


def model_folder(folders: Path, family: str) -> Path:
    folder = folders / family
    tied = family.startswith("gemma")
    return folder if folder.exists() else models.save(folder, family, tied=tied)


def _logits(rank, folder, pp=1, ep=1):
    """Largest difference of a logit to transformers', on the last stage."""
    import transformers

    layout = {"megatron_cfg": {"expert_model_parallel_size": ep}}
    backend = engine(rank, folder, policy_config(1, pp, **layout))
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 131, (2, 17), generator=generator)
    batch = {"input_ids": ids, "input_lengths": torch.full((2,), 17)}
    logprobs = backend.get_logprobs(batch)
    if logprobs is None:
        return None
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        want = torch.log_softmax(model(ids).logits, -1)
    want = want[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    return (logprobs[:, 1:] - want).abs().max().item()


@pytest.mark.parametrize("family", models.EVERY_FAMILY)
def test_convert_logits_equal_hugging_face(folders, family):
    (difference,) = run_ranks(_logits, 1, model_folder(folders, family))
    assert difference <= 1e-4


def _generated(rank, folder, ep):
    """Largest gap between the sampler's log-probs and those of the training forward."""
    layout = {"megatron_cfg": {"expert_model_parallel_size": ep}}
    backend = engine(rank, folder, policy_config(**layout))
    sampler = MegatronInferenceBackend()
    sampler.setup(backend)
    # Ranks differ in rows, in lengths and in where they stop.
    rows = 3 + 2 * rank.rank
    generator = torch.Generator().manual_seed(3 + rank.rank)
    lengths = torch.randint(2, 9, (rows,), generator=generator)
    lengths[1] = lengths[0]
    ids = torch.randint(3, 131, (rows, 8), generator=generator)
    ids[1] = ids[0]
    ids = torch.where(torch.arange(8)[None] < lengths[:, None], ids, 0)
    params = SamplingParams(
        max_new_tokens=9 + 4 * rank.rank,
        max_total_length=64,
        temperature=1.0,
        stop_token_ids=(2, 40, 41, 42, 43),
        batch_size=3,
    )
    prompts = {
        "input_ids": ids,
        "input_lengths": lengths,
        "sampling_seed": torch.arange(rows) + 11,
    }
    output = sampler.generate(prompts, params)
    ends = output["unpadded_sequence_lengths"]
    assert (ends > lengths).all()
    columns = torch.arange(output["output_ids"].shape[1])[None]
    mask = ((columns >= lengths[:, None]) & (columns < ends[:, None])).float()
    batch = {"input_ids": output["output_ids"], "input_lengths": ends}
    # Every rank scores as many micro-batches as the others, as in training.
    padded = {key: _padded(value, 8) for key, value in batch.items()}
    scored = backend.get_logprobs({**padded, "token_mask": _padded(mask, 8)})
    return ((scored[:rows] - output["logprobs"]) * mask).abs().max().item()


def _padded(value, rows):
    return torch.cat([value, value[:1].expand(rows - len(value), *value.shape[1:])])


@pytest.mark.parametrize("family", [*SAMPLED, "qwen3_moe"])
def test_sampled_logprobs_equal_the_training_forward(folders, family):
    """Windows, bounded scores, latent keys and experts over the cache of keys."""
    (gap,) = run_ranks(_generated, 1, model_folder(folders, family), 1)
    assert gap <= 1e-4


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3"])
def test_ranks_that_share_experts_sample_together(folders, family):
    gaps = run_ranks(_generated, 2, model_folder(folders, family), 2)
    assert max(gaps) <= 1e-4


def _moved(rank, folder, changes):
    """Hugging Face names of the weights that an update moves, and of all."""
    backend = engine(rank, folder, policy_config(megatron_cfg=changes))
    before = {name: w.clone() for name, w in backend.export_weights()}
    batch = shard(grpo_batch(), rank, backend.config)
    backend.train_step(batch, GRPOLossFn(ClippedPGLossConfig()))
    after = dict(backend.export_weights())
    return {n for n in before if not torch.equal(before[n], after[n])}, set(before)


def test_a_frozen_router_stays_and_a_free_one_moves(folders):
    folder = model_folder(folders, "deepseek_v3")
    ((moved, every),) = run_ranks(_moved, 1, folder, {"freeze_moe_router": True})
    frozen = {name for name in every if ".mlp.gate." in name}
    assert len(frozen) == 6 and not moved & frozen
    # The bias of the choice is moved by the load of experts, at a rate of its own.
    settings = {"moe_router_bias_update_rate": 0.1}
    ((moved, _),) = run_ranks(_moved, 1, folder, settings)
    assert frozen < moved
    ((moved, _),) = run_ranks(_moved, 1, folder, {})
    assert frozen - moved == {n for n in every if n.endswith("correction_bias")}


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"expert_model_parallel_size": 2}, "has no experts. Set it to 1"),
        ("mixtral", {"tensor_model_parallel_size": 2}, "use expert_model_parallel"),
        ("gemma2", {"layer_spec": "te"}, "layer_spec to 'torch'"),
    ],
)
def test_layouts_that_do_not_fit_the_model_are_refused(
    folders, family, changes, message
):
    folder = model_folder(folders, family)
    with pytest.raises(RankFailure, match=message):
        run_ranks(_moved, 2, folder, changes)
