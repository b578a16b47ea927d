"""The tokens that end a response, from tokenizer and model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from nemo_rl.models.generation.stops import end_tokens
from nemo_rl.utils.exceptions import ConfigurationError


@pytest.mark.parametrize(
    ("released", "tokenizer", "found"),
    [
        ({"eos_token_id": [7, 3]}, 3, (3, 7)),
        ({"eos_token_id": 7}, 3, (3, 7)),
        ({"eos_token_id": None}, 3, (3,)),
        ({}, 3, (3,)),
        ({}, None, ()),
        (None, 3, (3,)),
    ],
)
def test_both_count(tmp_path, released, tokenizer, found):
    if released is not None:
        path = tmp_path / "generation_config.json"
        path.write_text(json.dumps(released))
    assert end_tokens(SimpleNamespace(eos_token_id=tokenizer), tmp_path) == found


def test_without_a_tokenizer_the_model_decides(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    assert end_tokens(None, tmp_path) == (2,)


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"generation_config\.json cannot"):
        end_tokens(None, tmp_path)
