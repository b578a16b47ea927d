"""load_tokenizer: padding, template, and folders that hold none."""

import pytest

from nemo_rl.data.tokenizer import load_tokenizer
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes.tokenizers import CHATML, character_tokenizer


def saved(folder, **changes):
    tokenizer = character_tokenizer()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return folder


def test_it_pads_on_the_right_with_the_end_token_if_it_must(tmp_path):
    tokenizer = load_tokenizer(saved(tmp_path, pad_token=None))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.padding_side == "right"
    assert tokenizer("1a")["input_ids"] == character_tokenizer()("1a")["input_ids"]


def test_a_template_may_be_text_or_a_file(tmp_path):
    folder = saved(tmp_path)
    assert load_tokenizer(folder, CHATML).chat_template == CHATML
    (tmp_path / "t.jinja").write_text(CHATML)
    assert load_tokenizer(folder, str(tmp_path / "t.jinja")).chat_template == CHATML
    with pytest.raises(ConfigurationError, match="neither a template nor a file"):
        load_tokenizer(folder, "absent.jinja")


def test_what_cannot_be_used_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="has no end token"):
        load_tokenizer(saved(tmp_path / "a", eos_token=None))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match="no tokenizer that can be read"):
        load_tokenizer(tmp_path / "empty")
