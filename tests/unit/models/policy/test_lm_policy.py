"""Policy over one real worker in this process, and what it refuses before any."""

from __future__ import annotations

import shutil

import pytest
import torch

from nemo_rl.algorithms.grpo.config import ClippedPGLossConfig
from nemo_rl.algorithms.grpo.loss import GRPOLossFn
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.models.policy.interfaces import PolicyInterface
from nemo_rl.models.policy.lm_policy import Policy
from nemo_rl.models.policy.workers import PolicyWorker
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models
from tests.fakes.workers import FakeCluster
from tests.functional.engines import grpo_batch, policy_config
from tests.functional.ranks import run_ranks


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    return models.save(folder, "llama", tied=True, layers=2, hidden=64)


class Tokenizer:
    eos_token_id = 2


def section(source, **changes):
    config = policy_config(train_global_batch_size=4, **changes).to_dict()
    return {**config, "model_name": str(source)}


def _life(rank, source, folder):
    """Generate, score, train, save, go on, load, export: in one process."""
    from nemo_rl.distributed.local import LocalCluster

    cluster = LocalCluster()
    config = section(source, generation={"max_new_tokens": 4})
    policy = Policy(cluster, {"policy": config}, Tokenizer(), seed=3)
    assert isinstance(policy, PolicyInterface)
    prompts = BatchedDataDict(
        {
            "input_ids": torch.arange(3, 15).reshape(3, 4),
            "input_lengths": torch.tensor([4, 2, 3]),
        }
    )
    sampled = policy.generate(prompts)
    batch = BatchedDataDict(grpo_batch())
    base = policy.get_logprobs(batch)["logprobs"]
    loss = GRPOLossFn(ClippedPGLossConfig(reference_policy_kl_penalty=0.1))
    metrics = policy.train(batch, loss)
    policy.refit()
    trained = policy.get_logprobs(batch)["logprobs"]
    reference = policy.get_reference_logprobs(batch)["reference_policy_logprobs"]
    (folder / "checkpoint").mkdir()
    policy.save_checkpoint(folder / "checkpoint")
    policy.train(batch, loss)
    further = policy.get_logprobs(batch)["logprobs"]
    policy.load_checkpoint(folder / "checkpoint")
    restored = policy.get_logprobs(batch)["logprobs"]
    (folder / "hf").mkdir()
    policy.save_hf(folder / "hf")
    again = policy.generate(prompts)
    (described,) = policy.workers.run_all("describe")
    policy.shutdown()
    return {
        "sampled": dict(sampled),
        "again": dict(again),
        "metrics": metrics,
        "logprobs": (base, trained, reference, further, restored),
        "described": described,
    }


@pytest.fixture(scope="module")
def life(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("life")
    return run_ranks(_life, 1, source, folder)[0], folder


def test_policy_generates_and_follows_its_weights(life):
    result, _ = life
    sampled, again = result["sampled"], result["again"]
    assert sampled["output_ids"].shape[0] == 3
    assert (sampled["generation_lengths"] <= 4).all()
    assert sampled["output_ids"][:, :2].tolist() == [[3, 4], [7, 8], [11, 12]]
    # The same seeds, but the weights have moved and nothing was refitted by hand.
    assert not torch.equal(sampled["logprobs"], again["logprobs"])


def test_policy_trains_in_two_updates_and_reports(life):
    metrics = life[0]["metrics"]
    assert metrics["num_updates"] == 2
    assert metrics["grad_norm"] > 0
    assert metrics["train_cpu_s"] >= 0
    assert metrics["train_tflops_per_worker"] > 0
    assert metrics["peak_memory_gib_max"] > 0
    mask = grpo_batch()["token_mask"][:, 1:] * grpo_batch()["sample_mask"][:, None]
    assert metrics["global_valid_tokens"] == mask.sum().item()


def test_policy_scores_current_and_initial_weights(life):
    base, trained, reference, further, restored = life[0]["logprobs"]
    assert torch.equal(reference, base)
    assert not torch.equal(trained, base)
    assert not torch.equal(further, trained)
    assert torch.equal(restored, trained)


def test_policy_exports_a_folder_that_transformers_loads(life):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(life[1] / "hf")
    assert model.config.num_hidden_layers == 2


def test_worker_describes_itself(life):
    described = life[0]["described"]
    assert described["rank"] == 0
    assert described["device"] == "cpu"
    assert described["parameters"] > 131 * 64


def test_policy_starts_one_worker_per_place_with_plain_arguments(source):
    cluster = FakeCluster(4)
    config = section(source, tp=2, megatron_cfg={"env_vars": {"A": "1"}})
    policy = Policy(cluster, config, Tokenizer(), keep_reference=False, threads=2)
    started = cluster.started
    assert started["actor_class"] is PolicyWorker
    assert (started["num_workers"], started["env"]) == (4, {"A": "1"})
    kwargs = started["init_kwargs"]
    assert kwargs["policy"] == policy.config.to_dict()
    assert kwargs["model_folder"] == kwargs["tokenizer_folder"] == str(source)
    assert (kwargs["keep_reference"], kwargs["threads"]) == (False, 2)
    assert (policy.dims.dp, policy.dims.tp) == (2, 2)
    assert policy.generation._params["stop_token_ids"] == (2,)
    policy.shutdown()
    assert cluster.workers.ended


@pytest.mark.parametrize(
    ("content", "stops"),
    [
        ('{"eos_token_id": [5, 2, 7]}', (2, 5, 7)),
        ('{"eos_token_id": 5}', (2, 5)),
        ('{"eos_token_id": null}', (2,)),
        ("{}", (2,)),
    ],
)
def test_a_response_ends_at_any_token_the_model_was_released_with(
    source, tmp_path, content, stops
):
    folder = shutil.copytree(source, tmp_path / "model")
    (folder / "generation_config.json").write_text(content)
    policy = Policy(FakeCluster(1), section(folder), Tokenizer())
    assert policy.generation._params["stop_token_ids"] == stops


def test_a_broken_generation_config_is_named(source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "model")
    (folder / "generation_config.json").write_text("[")
    with pytest.raises(ConfigurationError, match="generation_config.json cannot be"):
        Policy(FakeCluster(1), section(folder), Tokenizer())


@pytest.mark.parametrize(
    ("world", "tp", "message"),
    [(3, 3, "tensor_model_parallel_size=3"), (8, 8, "tensor_model_parallel_size=8")],
)
def test_layout_that_does_not_divide_the_model_starts_nothing(
    source, world, tp, message
):
    cluster = FakeCluster(world)
    with pytest.raises(ConfigurationError, match=message):
        Policy(cluster, section(source, tp=tp))
    assert cluster.started == {}


def test_unknown_model_starts_nothing(tmp_path):
    cluster = FakeCluster(1)
    with pytest.raises(ConfigurationError):
        Policy(cluster, section(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="config.json"):
        Policy(cluster, section(tmp_path / "empty"))
    assert cluster.started == {}


def test_policy_takes_a_section_a_recipe_or_an_object(source):
    whole = {"policy": section(source), "grpo": {}}
    for config in (section(source), whole, policy_config(model_name=str(source))):
        policy = Policy(FakeCluster(1), config)
        assert policy.config.model_name == str(source)
        # No tokenizer: what generation_config.json of the model says.
        assert policy.generation._params["stop_token_ids"] == (2,)


def test_overridden_config_entries_are_checked_too(source):
    overrides = {"hf_config_overrides": {"hidden_act": "gelu"}}
    with pytest.raises(ConfigurationError, match="hidden_act='gelu'"):
        Policy(FakeCluster(1), section(source, **overrides))


def test_what_the_workers_were_started_with_is_read_and_not_changed(source):
    """The attributes that policies of other versions had."""
    policy = Policy(FakeCluster(2), section(source, tp=2))
    assert policy.megatron_cfg.tensor_model_parallel_size == 2
    assert not policy.gradient_checkpointing and not policy.mixed_precision
    policy.gradient_checkpointing = False
    policy.dtensor_cfg.enabled = False
    key = "policy.megatron_cfg.activation_checkpointing"
    with pytest.raises(ConfigurationError, match=f"{key} is .* running: set it to"):
        policy.gradient_checkpointing = True
    with pytest.raises(ConfigurationError, match="policy.precision is 'float32' and"):
        policy.mixed_precision = True
    with pytest.raises(ConfigurationError, match="policy.dtensor_cfg.enabled is False"):
        policy.dtensor_cfg.enabled = True
    with pytest.raises(ConfigurationError, match="pipeline_model_parallel_size is 1"):
        policy.megatron_cfg.pipeline_model_parallel_size = 2


def test_a_section_changed_field_by_field_is_checked_as_a_whole(source):
    config = policy_config(model_name=str(source))
    config.dtensor_cfg.enabled = True
    config.dtensor_cfg.tensor_parallel_size = 2
    policy = Policy(FakeCluster(2), config)
    assert (policy.dims.tp, policy.dims.dp) == (2, 1)
    assert policy.dtensor_cfg.tensor_parallel_size == 2
    config.megatron_cfg.enabled = True
    with pytest.raises(ConfigurationError, match="choose different training backends"):
        Policy(FakeCluster(2), config)
