"""Every family: config.json as transformers writes it, and the weights it implies."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.converters.families import model_spec, rules_for
from nemo_rl.converters.formats.hf import HfWeights
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.converters.model_spec import Rope
from nemo_rl.converters.rules import matmul_parameters
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes import models

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"]}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def without(*keys):
    return {key: value for key, value in LLAMA.items() if key not in keys}


def test_spec_reads_every_field():
    spec = model_spec(LLAMA)
    assert (spec.architecture, spec.num_layers) == ("LlamaForCausalLM", 2)
    assert spec.hidden_size == 64
    assert (spec.ffn_hidden_size, spec.num_heads, spec.num_kv_heads) == (96, 8, 4)
    assert (spec.head_dim, spec.vocab_size, spec.max_positions) == (8, 131, 256)
    assert (spec.norm_eps, spec.rope) == (1e-5, Rope(500000.0))
    assert (spec.tied, spec.qkv_bias, spec.qk_norm) == (True, False, False)


def test_spec_of_the_other_families():
    assert model_spec(QWEN2).qkv_bias and not model_spec(QWEN2).qk_norm
    qwen3 = model_spec({**LLAMA, "architectures": ["Qwen3ForCausalLM"]})
    assert qwen3.qk_norm and not qwen3.qkv_bias


def test_spec_defaults_of_absent_fields():
    spec = model_spec(
        without("num_key_value_heads", "tie_word_embeddings", "rope_theta")
    )
    assert (spec.num_kv_heads, spec.tied, spec.rope.theta) == (8, False, 10000.0)


def test_spec_takes_a_head_size_of_its_own():
    assert model_spec({**LLAMA, "head_dim": 32}).head_dim == 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every family as transformers saves it, untied and tied."""
    root = tmp_path_factory.mktemp("models")
    for family in models.EVERY_FAMILY:
        for tied in (False, True):
            place = root / f"{family}-{tied}"
            models.save(place, family, tied=tied, layers=2, hidden=32)
    return root


EVERY = pytest.mark.parametrize("family", models.EVERY_FAMILY)
TIED = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


@TIED
@EVERY
def test_rules_name_every_tensor_once_with_its_shape(folders, family, tied):
    folder = folders / f"{family}-{tied}"
    spec = model_spec(read_hf_config(folder))
    assert spec.tied == tied
    rules = rules_for(spec).values()
    named = [(n, spec.shape(d)) for rule in rules for n, d in rule.hf.items()]
    assert len(named) == len(dict(named))
    with HfWeights(folder) as weights:
        assert dict(named) == weights.shapes


@EVERY
def test_rules_round_trip_every_weight_bit_for_bit(folders, family):
    folder = folders / f"{family}-False"
    spec = model_spec(read_hf_config(folder))
    with HfWeights(folder) as weights:
        for rule in rules_for(spec).values():
            parts = [weights.tensor(name) for name in rule.hf]
            merged = rule.transform.merge(parts, spec)
            assert merged.shape == rule.megatron_shape(spec)
            back = [merged]
            if merged.shape[0] % 2 == 0:
                back = [rule.shard.shard(merged, rank, 2) for rank in range(2)]
            split = rule.transform.split(rule.shard.unshard(back), spec)
            for name, want, got in zip(rule.hf, parts, split, strict=True):
                assert torch.equal(want, got), name


def test_matmul_parameters_are_the_matrices_of_a_token(folders):
    for family, share in (("qwen3", 1.0), ("mixtral", 0.5)):
        folder = folders / f"{family}-False"
        spec = model_spec(read_hf_config(folder))
        with HfWeights(folder) as weights:
            sizes = [
                shape[0] * shape[1] * (share if ".experts." in name else 1.0)
                for name, shape in weights.shapes.items()
                if len(shape) == 2 and "embed_tokens" not in name
            ]
        assert matmul_parameters(rules_for(spec), spec) == sum(sizes)


def test_rope_of_transformers_5_and_4():
    scaled = {**LLAMA3_ROPE, "rope_theta": 1e4}
    new = model_spec({**without("rope_theta"), "rope_parameters": scaled})
    assert (new.rope.theta, new.rope.factor) == (1e4, 8.0)
    old = model_spec({**LLAMA, "rope_scaling": {**LLAMA3_ROPE, "factor": 32.0}})
    assert (old.rope.theta, old.rope.factor) == (500000.0, 32.0)
    plain = {"rope_type": "default", "rope_theta": 2e4}
    assert model_spec({**LLAMA, "rope_parameters": plain}).rope.theta == 2e4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*Supported: Llama"),
        ({"architectures": []}, r"architectures=\[\]"),
        ({"architectures": None}, "architectures=None"),
        ({"attention_bias": True}, "attention_bias=True is not covered by the Llama"),
        ({"mlp_bias": True}, "mlp_bias=True is not covered"),
        ({"use_sliding_window": True}, "use_sliding_window=True is not covered"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"hidden_size": "64"}, "hidden_size='64', expected a positive integer"),
        ({"vocab_size": 0}, "vocab_size=0, expected a positive integer"),
        ({"num_hidden_layers": None}, "num_hidden_layers=None"),
        ({"num_attention_heads": True}, "num_attention_heads=True"),
        ({"intermediate_size": 9.5}, "intermediate_size=9.5"),
        ({"num_key_value_heads": "2"}, "num_key_value_heads='2', expected a positive"),
        ({"head_dim": -1}, "head_dim=-1, expected a positive integer"),
        ({"max_position_embeddings": "x"}, "max_position_embeddings='x'"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps='small', expected a positive number"),
        ({"rope_theta": "high"}, "rope_theta='high', expected a positive number"),
        ({"rope_scaling": "yarn"}, "'yarn', expected an object with rope_type"),
        (
            {"rope_scaling": {**LLAMA3_ROPE, "factor": None}},
            "factor=None, expected a positive number",
        ),
        ({"architectures": "LlamaForCausalLM"}, "architectures='LlamaForCausalLM'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'.*'llama3'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "not supported"),
        (
            {"rope_scaling": {**LLAMA3_ROPE, "low_freq_factor": 2.0}},
            "'low_freq_factor': 2.0.*not supported",
        ),
        (
            {"rope_parameters": {**LLAMA3_ROPE, "high_freq_factor": 8.0}},
            "not supported",
        ),
        (
            {"rope_scaling": {**LLAMA3_ROPE, "original_max_position_embeddings": 4096}},
            "not supported",
        ),
    ],
)
def test_spec_refuses_what_the_rules_do_not_cover(change, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        model_spec({**LLAMA, **change}, source="somewhere/config.json")
    assert "somewhere/config.json" in str(caught.value)


def test_qwen2_may_say_that_it_has_attention_biases():
    assert model_spec({**QWEN2, "attention_bias": True}).qkv_bias
    with pytest.raises(ConfigurationError, match="use_sliding_window"):
        model_spec({**QWEN2, "use_sliding_window": True})


BASE = {**LLAMA, "sliding_window": 8}
MOE = {**BASE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
DEEPSEEK = {
    **LLAMA,
    "architectures": ["DeepseekV3ForCausalLM"],
    "q_lora_rank": None,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}


def of(architecture, config, **changes):
    return {**config, "architectures": [f"{architecture}ForCausalLM"], **changes}


def test_a_mistral_without_the_field_slides_as_in_transformers():
    assert model_spec(of("Mistral", LLAMA)).window == 4096
    assert model_spec(of("Mistral", LLAMA, sliding_window=None)).window is None
    assert model_spec(of("Mistral", BASE)).sliding == (True, True)
    assert model_spec(BASE).window is None


def test_layers_of_gemma_as_hub_files_describe_them():
    """Files of transformers 4: a pattern in place of a list, two bases by name."""
    gemma = {**BASE, "num_hidden_layers": 6, "hidden_act": None}
    two = model_spec(of("Gemma2", gemma))
    assert two.sliding == (True, False) * 3
    assert (two.tied, two.attention_scale, two.activation) == (True, 1 / 16, "gelu")
    old = {"rope_local_base_freq": 1e4, "rope_theta": 1e6, "sliding_window_pattern": 3}
    three = model_spec(of("Gemma3", gemma, **old))
    assert three.sliding == (True, True, False) * 2
    assert (three.rope.theta, three.local_rope) == (1e6, Rope(1e4))


def test_experts_of_qwen_are_in_every_nth_layer():
    config = of("Qwen3Moe", MOE, num_hidden_layers=4, decoder_sparse_step=2)
    assert model_spec(config).moe.layers == (False, True, False, True)
    assert not model_spec(config).moe.normalise


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (of("Qwen3Moe", MOE, mlp_only_layers=[9]), r"mlp_only_layers=\[9\]"),
        (of("Qwen3Moe", BASE), "num_local_experts=None"),
        (
            of("Qwen2Moe", MOE, shared_expert_intermediate_size=8, qkv_bias=False),
            "bias",
        ),
        (of("Mixtral", MOE), "num_local_experts=None, expected a positive integer"),
        (of("Gemma2", BASE, hidden_activation="gelu"), "'gelu' is not covered"),
        (of("DeepseekV3", DEEPSEEK, num_experts_per_tok=6), "only 4 experts per token"),
        (of("DeepseekV3", DEEPSEEK, norm_topk_prob=False), "norm_topk_prob=False"),
        (of("DeepseekV2", DEEPSEEK, topk_method="group_limited_greedy"), "its best 1"),
        (of("Phi3", LLAMA, rope_scaling={"type": "longrope"}), "'longrope'"),
    ],
)
def test_what_would_be_another_model_is_refused(config, message):
    with pytest.raises(ConfigurationError, match=message):
        model_spec(config)


@EVERY
def test_an_absent_field_means_what_transformers_takes(family):
    """Files on the hub leave fields out; each such gap is another model if misread."""
    config = models.tiny_config(family, heads=4, kv_heads=2)
    kind, _ = models.EVERY_FAMILY[family]
    named = {"architectures": [f"{kind.removesuffix('Text')}ForCausalLM"]}
    full = config.to_dict()
    for left_out in full:
        less = {k: v for k, v in full.items() if k not in (left_out, "architectures")}
        try:
            ours = model_spec({**less, **named})
        except ConfigurationError:
            continue  # asked for
        theirs = type(config).from_dict(less).to_dict()
        expected = model_spec({**theirs, **named})
        # What a cache of positions is sized by changes no number.
        for spec in (ours, expected):
            object.__setattr__(spec, "max_positions", 0)
        assert ours == expected, left_out
