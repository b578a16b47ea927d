"""Tests of nemo_rl.utils.secrets."""

from __future__ import annotations

import pytest

from nemo_rl.utils.secrets import (
    key_is_secret,
    masked,
    masked_overrides,
    masked_variables,
)


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


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        ("logger.wandb.api_key", True),
        ("token", True),
        ("data.hf_token", True),
        ("env.llm_judge.api_key_env", False),
        ("data.prompt_key", False),
        ("policy.generation.stop_token_ids", False),
        ("eos_token", False),
    ],
)
def test_keys_are_told_apart(key: str, secret: bool):
    assert key_is_secret(key) is secret


def test_variables_are_named_more_freely():
    given = {"WANDB_API_KEY": "x", "MY_KEY": "y", "GH_TOKEN": "z", "SBATCH_QOS": "q"}
    hidden = {"GH_TOKEN": "***", "MY_KEY": "***", "SBATCH_QOS": "q"}
    assert masked_variables(given) == {**hidden, "WANDB_API_KEY": "***"}


def test_overrides_are_masked_inside_of_values_too():
    given = ["a.api_key=1=2", 'logger.wandb={"api_key": "s", "project": "p"}']
    assert masked_overrides(given) == [
        "a.api_key=***",
        'logger.wandb={"api_key": "***", "project": "p"}',
    ]
    kept = ["a.b=[1, 2]", "a.max_tokens=4", "c=", "d={", "model=x:y", "no_equals"]
    assert masked_overrides(kept) == kept
