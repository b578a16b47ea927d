"""Conversations to tokens and masks, with and without a chat template."""

import pytest

from nemo_rl.config.data import DataConfig
from nemo_rl.data.conversations import ConversationEncoder
from nemo_rl.data.encoding import EncoderContext
from nemo_rl.utils.exceptions import DataError
from tests.fakes.tokenizers import CHATML, character_tokenizer

PLAIN, CHAT = character_tokenizer(), character_tokenizer(CHATML)
TALK = [
    {"role": "user", "content": "1"},
    {"role": "assistant", "content": "ab"},
    {"role": "user", "content": "2"},
    {"role": "assistant", "content": "c"},
]


def encode(row, tokenizer=PLAIN, **config):
    encoder = ConversationEncoder(EncoderContext(DataConfig(**config), tokenizer))
    return encoder, encoder.encode(row, "row 3", 3)


def learned(item, tokenizer):
    ids, mask, _ = item["sequence"]
    return tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])


def test_prompt_and_response_end_with_the_end_token():
    _, item = encode({"prompt": "12", "response": "21"})
    ids, mask, counts = item["sequence"]
    assert PLAIN.decode(ids) == "1221<|im_end|>"
    assert mask == [0, 0, 1, 1, 1]
    assert counts


def test_the_response_field_is_the_recipes():
    _, item = encode({"prompt": "12", "gold": "21"}, response_key="gold")
    assert learned(item, PLAIN) == "21<|im_end|>"


def test_every_answer_of_a_conversation_is_learned_with_its_end():
    _, item = encode({"messages": TALK}, CHAT)
    assert learned(item, CHAT) == "ab<|im_end|>c<|im_end|>"


def test_a_system_prompt_is_part_of_the_conversation_and_not_learned():
    _, item = encode({"messages": TALK}, CHAT, system_prompt="be short")
    assert "be short" in CHAT.decode(item["sequence"][0])
    assert learned(item, CHAT) == "ab<|im_end|>c<|im_end|>"


def test_tokens_that_are_there_already_are_taken_as_they_are():
    row = {
        "input_ids": [5, 6, 7, 0],
        "labels": [-100, 6, 7, -100],
        "attention_mask": [1, 1, 1, 0],
    }
    encoder, item = encode(row)
    batch = encoder.collate([item])
    assert batch["input_ids"].tolist() == [[5, 6, 7]]
    assert batch["token_mask"].tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "row 3: prompt ends with .*'user'.* no field 'response'"),
        ({"prompt": "a", "response": ""}, "row 3: field 'response' must be a text"),
        ({"prompt": "a", "responce": "b"}, "Did you mean responce"),
        ({"messages": TALK}, "needs a chat template"),
        ("text", "row 3: expected a mapping, got str"),
        ({"input_ids": [1, 2]}, "field 'labels' must be a list of integers"),
        ({"input_ids": [1], "labels": [1, 2]}, "token columns differ in length"),
        ({"input_ids": [1, 2], "labels": [-100, 3]}, r"labels\[1\] is 3"),
        ({"input_ids": [1, 2], "labels": [-100, -100]}, "nothing to train on"),
        (
            {"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [0, 1]},
            "attention_mask must be 1 on the tokens",
        ),
    ],
)
def test_rows_that_cannot_be_learned_from(row, message):
    with pytest.raises(DataError, match=message):
        encode(row)
