"""Rendering once: the spans add up to the whole conversation's tokens."""

import pytest

from nemo_rl.data.llm_message_utils import format_messages, render_prompt
from nemo_rl.utils.exceptions import DataError
from tests.fakes.tokenizers import CHATML, character_tokenizer

CHAT = character_tokenizer(CHATML)
TALK = [
    {"role": "system", "content": "assistant"},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "assistant"},
    {"role": "user", "content": "a b"},
    {"role": "assistant", "content": "ok"},
]


def test_a_prompt_ends_where_the_assistant_begins():
    text, ids = render_prompt(TALK[:2], CHAT)
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert CHAT.decode(ids) == text and ids[0] == 1


def test_without_a_template_one_text_is_encoded_as_it_is():
    plain = character_tokenizer()
    assert render_prompt([{"role": "user", "content": "12>"}], plain)[0] == "12>"
    with pytest.raises(DataError, match="5 messages needs a chat template"):
        render_prompt(TALK, plain)
    with pytest.raises(DataError, match="needs a chat template"):
        format_messages(TALK, plain)


def test_a_closing_end_token_is_taken_off_a_plain_prompt():
    class Closing:
        chat_template, eos_token_id = None, 2

        def __call__(self, text):
            return {"input_ids": [5, 6, 2]}

    assert render_prompt([{"role": "user", "content": "x"}], Closing())[1] == [5, 6]


def test_messages_partition_the_tokens_and_mask_only_answers():
    formatted = format_messages(TALK, CHAT)
    whole = CHAT.apply_chat_template(TALK, tokenize=False)
    ids = [i for m in formatted for i in m["token_ids"].tolist()]
    assert ids == CHAT(whole, add_special_tokens=False)["input_ids"]
    trained = [
        CHAT.decode(m["token_ids"][m["token_loss_mask"].bool()]) for m in formatted
    ]
    assert trained == ["", "", "assistant<|im_end|>", "", "ok<|im_end|>"]
    assert all(m["token_ids"].shape == m["token_loss_mask"].shape for m in formatted)


def test_the_generation_prompt_is_not_trained_on():
    last = format_messages(TALK[:2], CHAT, add_generation_prompt=True)[-1]
    assert CHAT.decode(last["token_ids"]).endswith("<|im_start|>assistant\n")
    assert last["token_loss_mask"].sum() == 0


def test_a_template_that_strips_is_followed_and_one_that_rewrites_refused():
    stripping = character_tokenizer(CHATML.replace("m.content", "m.content | trim"))
    formatted = format_messages([{"role": "assistant", "content": " x "}], stripping)
    mask = formatted[0]["token_loss_mask"].bool()
    assert stripping.decode(formatted[0]["token_ids"][mask]) == "x<|im_end|>"
    shouting = character_tokenizer(CHATML.replace("m.content", "m.content | upper"))
    with pytest.raises(DataError, match=r"rewrites message 0 \(system\)"):
        format_messages(TALK, shouting)


def test_a_refusing_template_is_quoted():
    picky = character_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match="roles must alternate"):
        render_prompt(TALK, picky)
