"""Prompts; reading rows and rendering are tested in test_rows and test_module."""

from nemo_rl.config.data import DataConfig
from nemo_rl.data.encoding import EncoderContext
from nemo_rl.data.prompts import PromptEncoder
from tests.fakes.tokenizers import character_tokenizer


def test_rows_become_a_prompt_batch():
    encoder = PromptEncoder(EncoderContext(DataConfig(), character_tokenizer()))
    items = [
        encoder.encode({"prompt": text, "answer": 7}, f"row {i}", i)
        for i, text in enumerate(("12", "3"))
    ]
    batch = encoder.collate(items)
    assert batch["input_lengths"].tolist() == [2, 1]
    assert batch["input_ids"][1, 1] == 0
    assert batch["prompt"] == ["12", "3"]
    assert batch["idx"].tolist() == [0, 1]
    assert batch["answer"] == [7, 7]
