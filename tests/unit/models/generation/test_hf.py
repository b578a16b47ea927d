"""HuggingFaceGeneration: by name or on a cluster, what it takes, what it follows."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.models.generation import GenerationConfig, HuggingFaceGeneration
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models
from tests.fakes.workers import FakeCluster
from tests.functional.ranks import run_ranks


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return str(models.save(tmp_path_factory.mktemp("model") / "m", "llama", layers=2))


def _sampled(rank, source):
    generator = HuggingFaceGeneration(
        source,
        max_new_tokens=4,
        max_total_sequence_length=64,
        torch_dtype="float32",
        eos_token_id=130,
    )
    prompts = BatchedDataDict(
        {
            "input_ids": torch.tensor([[1, 2, 3, 4]]),
            "attention_mask": torch.tensor([[1, 1, 1, 1]]),
        }
    )
    generator.prepare_for_generation()
    before = generator.generate(prompts, greedy=True)
    weights = generator.policy.export_weights()
    generator.update_weights({name: -weight for name, weight in weights.items()})
    after = generator.generate(prompts, greedy=True)
    generator.finish_generation()
    generator.shutdown()
    return dict(before), dict(after)


def test_samples_what_transformers_samples_and_follows_weights(source):
    import transformers

    ((before, after),) = run_ranks(_sampled, 1, source)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32
    )
    prompt = torch.tensor([[1, 2, 3, 4]])
    want = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=4,
        do_sample=False,
        eos_token_id=None,
    )
    assert torch.equal(before["output_ids"], want)
    assert before["logprobs"][0, 4:].max() < 0
    assert not torch.equal(before["output_ids"], after["output_ids"])


def test_takes_a_cluster_and_a_configuration(source):
    cluster = FakeCluster(2)
    config = GenerationConfig(model_name=source, max_new_tokens=7, top_k=5)
    for given in (config, {"model_name": source, "max_new_tokens": 7, "top_k": 5}):
        generator = HuggingFaceGeneration(
            cluster,
            given,
            tensor_parallel_size=2,
            max_total_sequence_length=64,
            do_sample=False,
            pad_token_id=0,
        )
        section = generator.policy.config
        assert section.generation.max_new_tokens == 7
        assert section.generation.top_k == 5
        assert section.dtensor_cfg.tensor_parallel_size == 2
        assert generator._greedy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetition_penalty": 1.1}, "repetition_penalty=1.1 is not available"),
        ({"backend": "vllm"}, "needs backend: 'hf'"),
        ({"max_new_token": 4}, "Did you mean max_new_tokens"),
        ({"load_in_8bit": True}, "load_in_8bit=True is not available"),
        ({"top_p": 2.0}, "top_p=2.0: expected less than or equal to 1"),
    ],
)
def test_options_that_cannot_be(source, options, message):
    with pytest.raises(ConfigurationError, match=message):
        HuggingFaceGeneration(source, **options)


def test_a_cluster_without_a_model_is_refused():
    with pytest.raises(ConfigurationError, match="set model_name in it"):
        HuggingFaceGeneration(FakeCluster(1), {"max_new_tokens": 4})
