"""Tests of nemo_rl.utils.secrets."""

from __future__ import annotations

from nemo_rl.utils.secrets import masked


def test_values_of_secrets_are_hidden_and_the_rest_is_not():
    config = {
        "api_key": "a",
        "wandb": {"hf_token": "b", "project": "p", "password": None},
        "max_new_tokens": 4,
    }
    assert masked(config) == {
        "api_key": "***",
        "wandb": {"hf_token": "***", "project": "p", "password": None},
        "max_new_tokens": 4,
    }
    assert config["api_key"] == "a"
