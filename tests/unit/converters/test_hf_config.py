"""Reading config.json: fields, both spellings of transformers, and what is refused."""

from __future__ import annotations

import json

import pytest

from nemo_rl.converters.hf_config import HfConfig, read_hf_config
from nemo_rl.utils.exceptions import ConfigurationError


def test_read_config_errors(tmp_path):
    with pytest.raises(ConfigurationError, match="has no config.json. Point policy"):
        read_hf_config(tmp_path)
    file = tmp_path / "config.json"
    file.mkdir()
    with pytest.raises(ConfigurationError, match="config.json cannot be read"):
        read_hf_config(tmp_path)
    file.rmdir()
    file.write_text("{")
    with pytest.raises(ConfigurationError, match="is not valid JSON"):
        read_hf_config(tmp_path)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="is not valid JSON"):
        read_hf_config(tmp_path)
    file.write_text("[1]")
    with pytest.raises(ConfigurationError, match="holds list, not an object"):
        read_hf_config(tmp_path)
    file.write_text(json.dumps({"a": 1}))
    assert read_hf_config(tmp_path) == {"a": 1}


def test_an_adapter_is_not_a_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="LoRA adapter.*lora-merge BASE"):
        read_hf_config(tmp_path)


def config(**values):
    return HfConfig(values, "here")


def test_null_counts_as_absent():
    assert config(a=None).get("a", 3) == 3
    assert config(a=None).integer("a", 5) == 5
    assert config(a=None).optional("a") is None
    assert config(a=0.5).optional("a") == 0.5


@pytest.mark.parametrize("value", [0, -1, True, "3", 2.5, None])
def test_an_integer_is_positive(value):
    with pytest.raises(ConfigurationError, match="here: a=.*a positive integer"):
        config(a=value).integer("a")


def test_what_is_expected_may_be_absent_or_false():
    config(b=False, c=[], d=None).expect("X", a=1, b=False, c=False, d=True)
    with pytest.raises(ConfigurationError, match=r"a=2 is not covered by the X .* 1"):
        config(a=2).expect("X", a=1)
    with pytest.raises(ConfigurationError, match=r"or false"):
        config(a=2).expect("X", a=False)


def test_kinds_of_layers():
    good = config(num_hidden_layers=2, kinds=["x", "y"])
    assert good.layer_kinds("kinds", ("x", "y")) == ["x", "y"]
    assert good.layer_kinds("others", ("x",)) is None
    with pytest.raises(ConfigurationError, match="kinds has 'y', expected x"):
        good.layer_kinds("kinds", ("x",))
    with pytest.raises(ConfigurationError, match="a list of 3 entries"):
        config(num_hidden_layers=3, kinds=["x"]).layer_kinds("kinds", ("x",))


def test_ropes_of_two_kinds_of_layers():
    entries = {"full": {"rope_theta": 7.0}, "sliding": {"rope_theta": 9.0}}
    found = config(rope_parameters=entries)
    assert (found.rope("full").theta, found.rope("sliding").theta) == (7.0, 9.0)
    linear = config(rope_scaling={"type": "linear", "factor": 2.0}, rope_theta=5.0)
    assert vars(linear.rope()) == {
        "theta": 5.0,
        "kind": "linear",
        "factor": 2.0,
        "percent": 1.0,
        "yarn": (),
    }
