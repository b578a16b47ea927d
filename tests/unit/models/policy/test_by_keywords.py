"""Policies by keywords: what goes where, what cannot be."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.models import HuggingFacePolicy, MegatronPolicy
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models
from tests.fakes.workers import FakeCluster


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    config = models.tiny_config("llama")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    return str(folder)


def test_megatron_policy_sorts_keywords_into_their_sections(source):
    cluster = FakeCluster(2)
    policy = MegatronPolicy(
        source,
        cluster=cluster,
        tensor_model_parallel_size=2,
        train_micro_batch_size=1,
        max_total_sequence_length=64,
    )
    assert policy.config.megatron_cfg.tensor_model_parallel_size == 2
    assert policy.config.train_micro_batch_size == 1
    with pytest.raises(ConfigurationError, match="mean tensor_model_paral"):
        MegatronPolicy(source, cluster=cluster, tensor_paralel_size=2)


def test_hugging_face_policy_sorts_keywords_into_their_sections(source):
    cluster = FakeCluster(2)
    policy = HuggingFacePolicy(
        source,
        cluster=cluster,
        tensor_parallel_size=2,
        dtensor_cfg={"activation_checkpointing": True},
        max_total_sequence_length=64,
        torch_dtype=torch.float32,
        trust_remote_code=False,
        load_in_8bit=False,
        load_in_4bit=False,
    )
    assert policy.config.precision == "float32"
    assert policy.gradient_checkpointing and policy.dims.tp == 2
    assert policy.config.dtensor_cfg.enabled
    with pytest.raises(ConfigurationError, match="mean tensor_parallel_size"):
        HuggingFacePolicy(source, cluster=cluster, tensor_paralel_size=2)


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ({"trust_remote_code": True}, "trust_remote_code=True is not available: code"),
        ({"load_in_8bit": True}, "load_in_8bit=True is not available"),
        ({"load_in_4bit": True}, "load_in_4bit=True is not available"),
        ({"torch_dtype": "float16"}, "torch_dtype='float16' is not one of 'bfloat16'"),
        ({"dtype": "auto"}, "dtype='auto' is not one of"),
        ({"device_map": {"": 0}}, "tensor_parallel_size"),
    ],
)
def test_what_a_hugging_face_policy_cannot_be(source, keyword, message):
    with pytest.raises(ConfigurationError, match=message):
        HuggingFacePolicy(source, **keyword)


def test_a_device_map_beside_a_cluster_says_who_decides(source):
    with pytest.raises(ConfigurationError, match="Leave device_map out"):
        HuggingFacePolicy(source, cluster=FakeCluster(1), device_map="auto")
