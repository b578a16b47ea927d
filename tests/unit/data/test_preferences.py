"""Pairs of answers to rows that alternate, in every form that data sets have."""

import pytest

from nemo_rl.config.data import DataConfig
from nemo_rl.data.encoding import EncoderContext
from nemo_rl.data.preferences import PreferenceEncoder
from nemo_rl.utils.exceptions import DataError
from tests.fakes.tokenizers import CHATML, character_tokenizer

PLAIN, CHAT = character_tokenizer(), character_tokenizer(CHATML)
ASK = [{"role": "user", "content": "12"}]


def says(text):
    return [{"role": "assistant", "content": text}]


def encode(row, tokenizer=PLAIN, limit=None, **config):
    encoder = PreferenceEncoder(EncoderContext(DataConfig(**config), tokenizer, limit))
    return encoder, encoder.encode(row, "row 3", 3)


def learned(item, tokenizer):
    return [
        tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
        for ids, mask, _ in item["sequences"]
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "12", "chosen": "21", "rejected": "12"},
        {"prompt": ASK, "chosen": says("21"), "rejected": says("12")},
        {"prompt": "12", "chosen": ASK + says("21"), "rejected": ASK + says("12")},
        {"chosen": ASK + says("21"), "rejected": ASK + says("12")},
        {"messages": ASK, "chosen": "21", "rejected": "12"},
    ],
)
def test_every_form_of_a_pair(row):
    _, item = encode(row)
    assert learned(item, PLAIN) == ["21<|im_end|>", "12<|im_end|>"]
    assert [ids[:2] for ids, _, _ in item["sequences"]] == [
        PLAIN("12")["input_ids"]
    ] * 2


def test_only_the_last_answer_is_learned():
    talk = ASK + says("no") + [{"role": "user", "content": "again"}]
    _, item = encode({"prompt": talk, "chosen": "21", "rejected": "12"}, CHAT)
    assert learned(item, CHAT) == ["21<|im_end|>", "12<|im_end|>"]


def test_rows_alternate():
    encoder, item = encode({"prompt": "1", "chosen": "2", "rejected": "345"})
    batch = encoder.collate([item, item])
    assert batch["input_lengths"].tolist() == [3, 5, 3, 5]
    assert batch["idx"].tolist() == [3, 3, 3, 3]
    assert batch["token_mask"][0].tolist() == [0, 1, 1, 0, 0]


def test_a_pair_is_left_out_as_a_pair():
    row = {"prompt": "1", "chosen": "2", "rejected": "34567"}
    _, item = encode(row, limit=4, overlong="skip")
    assert [counts for _, _, counts in item["sequences"]] == [False, False]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "1", "chosen": "2"}, "row 3: has no field 'rejected'"),
        ({"prompt": "1", "chosen": "2", "rejected": 5}, "'rejected' must be a text"),
        ({"chosen": "2", "rejected": "3"}, "must be an assistant's answer to a prompt"),
        ({"prompt": "1", "chosen": "2", "rejected": "2"}, "are the same answer"),
        ({"prompt": "1", "chosen": ASK, "rejected": "2"}, "an assistant's answer"),
        (
            {"chosen": ASK + says("2"), "rejected": [*says("x"), *ASK, *says("2")]},
            "differ before it",
        ),
        ({"prompt": "1", "chosen": [], "rejected": "2"}, "not empty"),
        (["1"], "expected a mapping, got list"),
    ],
)
def test_pairs_that_cannot_be_compared(row, message):
    with pytest.raises(DataError, match=message):
        encode(row)
