"""Rules between sections: each message with what was read and the nearest value."""

import pytest

from nemo_rl.algorithms.grpo.config import GRPOMasterConfig
from nemo_rl.config.base import merge
from nemo_rl.config.validation import validate_model_shape
from nemo_rl.utils.exceptions import ConfigurationError

CPU = {"gpus_per_node": 0, "cpu_workers_per_node": 4}
SMOLLM2 = {
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
}


def recipe(policy: dict | None = None, **sections: dict) -> GRPOMasterConfig:
    base = {"policy": {"model_name": "smol"}}
    return GRPOMasterConfig.from_mapping(
        merge(base, {"policy": policy or {}, **sections})
    )


def megatron(**values: object) -> dict:
    return {"megatron_cfg": values}


@pytest.mark.parametrize(
    ("policy", "sections", "message"),
    [
        (
            megatron(tensor_model_parallel_size=4, pipeline_model_parallel_size=3),
            {},
            "tensor 4 x pipeline 3 x context 1 parallel = 12 processes .* world "
            "size 8. Nearest valid world size: 12",
        ),
        (
            megatron(layer_spec="te"),
            {"cluster": CPU},
            "'te' needs GPUs, but cluster.gpus",
        ),
        (
            megatron(tensor_model_parallel_size=16),
            {"cluster": {"num_nodes": 2}},
            "size=16 exceeds cluster.gpus_per_node=8: .* Nearest valid: 8",
        ),
        (
            {"generation": {"max_new_tokens": 600}},
            {},
            "max_new_tokens=600 exceeds policy.max_total_sequence_length=512.* 511",
        ),
        (
            {},
            {"data": {"max_input_seq_length": 600}},
            "data.max_input_seq_length=600 exceeds .*=512. Lower it to 512 or less",
        ),
        (
            {"train_global_batch_size": 100},
            {},
            "train_global_batch_size=100 does not divide the 512 samples of a step "
            r"\(grpo.num_prompts_per_step x grpo.num_generations_per_prompt\). Nearest "
            "valid: 64 or 128",
        ),
        (
            {"train_global_batch_size": 4},
            {},
            "=4 is not a multiple of the 8 copies .* Nearest valid: 8",
        ),
        (
            {"train_micro_batch_size": 3},
            {},
            "train_micro_batch_size=3 does not divide the 64 samples of each copy .* "
            "Nearest valid: 2 or 4",
        ),
        (
            {"train_global_batch_size": 256},
            {"loss_fn": {"force_on_policy_ratio": True}},
            "force_on_policy_ratio needs one update per step, but 512 .* Set it to 512",
        ),
    ],
)
def test_recipes_that_cannot_be(policy: dict, sections: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        recipe(policy, **sections)


def test_bfloat16_on_cpus_is_allowed() -> None:
    assert recipe(cluster=CPU).parallel_dims.dp == 4


@pytest.mark.parametrize(
    ("policy", "data", "expected"),
    [
        ({}, {}, 256),
        ({"generation": {"max_new_tokens": 12}}, {}, 500),
        ({}, {"max_input_seq_length": 40}, 40),
        ({}, {"max_input_seq_length": 512}, 511),
    ],
)
def test_longest_prompt(policy: dict, data: dict, expected: int) -> None:
    assert recipe(policy, data=data).max_prompt_length == expected


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            megatron(tensor_model_parallel_size=2),
            "tensor_model_parallel_size=2 does not divide 9 attention heads and 3 "
            "key-value heads of smol; nearest valid: 1 or 3.",
        ),
        (
            megatron(pipeline_model_parallel_size=4),
            "pipeline_model_parallel_size=4 does not divide the 30 layers of smol; "
            "nearest valid: 3 or 5.",
        ),
        (
            {"max_total_sequence_length": 9000},
            "max_total_sequence_length=9000 exceeds the 8192 positions of smol; set it "
            "to 8192 or less.",
        ),
        (
            {**megatron(tensor_model_parallel_size=8), "hf_config_overrides": {}},
            "nearest valid: 3.",
        ),
    ],
)
def test_model_shapes_that_cannot_be_split(policy: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        validate_model_shape(recipe(policy), SMOLLM2)


def test_feed_forward_width() -> None:
    shape = {**SMOLLM2, "num_attention_heads": 8, "num_key_value_heads": 8}
    config = recipe(megatron(tensor_model_parallel_size=8))
    validate_model_shape(config, shape)
    with pytest.raises(
        ConfigurationError, match="feed-forward width 1540.*valid: 7 or"
    ):
        validate_model_shape(config, {**shape, "intermediate_size": 1540})


def test_shapes_that_can_be_split() -> None:
    cluster = {"cluster": {"gpus_per_node": 6}}
    config = recipe(
        {
            **megatron(tensor_model_parallel_size=3, pipeline_model_parallel_size=2),
        },
        **cluster,
    )
    validate_model_shape(config, SMOLLM2)
    validate_model_shape(config, {"text_config": SMOLLM2})
    validate_model_shape(config, {})


def test_overrides_of_the_models_config_count() -> None:
    config = recipe(
        {
            **megatron(tensor_model_parallel_size=2),
            "hf_config_overrides": {"num_attention_heads": 8, "num_key_value_heads": 4},
        }
    )
    validate_model_shape(config, SMOLLM2)
