"""RowReader: each field is checked and each complaint names its row."""

import pytest

from nemo_rl.config.data import DataConfig
from nemo_rl.data.rows import RowReader
from nemo_rl.utils.exceptions import ConfigurationError, DataError

USER = {"role": "user", "content": "hi"}


def read(row, search_dir=None, **config):
    reader = RowReader(DataConfig.from_mapping(config), search_dir=search_dir)
    return reader.read(row, "row 7")


def test_prompts_messages_and_texts():
    assert read("hi").messages == [USER]
    row = {"prompt": "hi", "answer": 3, "task_name": "sums", "level": 5}
    got = read(row)
    assert (got.messages, got.answer, got.task_name) == ([USER], 3, "sums")
    assert got.row == row and got.row is not row
    assert read({"messages": [USER]}).answer is None
    assert read({"prompt": [USER]}).messages == [USER]


def test_other_field_names():
    got = read(
        {"question": "hi", "gold": "x"}, prompt_key="question", answer_key="gold"
    )
    assert got.messages == [USER] and got.answer == "x"


def test_a_system_prompt_is_added_once(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    assert read("hi", system_prompt="Be brief.").messages == [system, USER]
    own = {"role": "system", "content": "Own."}
    kept = read({"messages": [own, USER]}, system_prompt="Be brief.").messages
    assert kept == [own, USER]
    (tmp_path / "system.txt").write_text("Be brief.")
    assert read("hi", tmp_path, system_prompt_file="system.txt").messages[0] == system


def test_a_prompt_file_wraps_the_last_message(tmp_path):
    (tmp_path / "p.txt").write_text("Q: {}\nA in {braces}:")
    got = read({"messages": [USER, {"role": "user", "content": "{x}"}]}, tmp_path,
               prompt_file="p.txt").messages  # fmt: skip
    assert [m["content"] for m in got] == ["hi", "Q: {x}\nA in {braces}:"]
    assert (
        read("hi", tmp_path, prompt_file="p.txt").messages[0]["content"][:5] == "Q: hi"
    )


def test_bad_prompt_files(tmp_path):
    (tmp_path / "p.txt").write_text("no place")
    with pytest.raises(ConfigurationError, match="has no {} where the prompt"):
        read("hi", tmp_path, prompt_file="p.txt")
    with pytest.raises(ConfigurationError, match="'absent.txt' does not exist"):
        read("hi", tmp_path, prompt_file="absent.txt")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (3, "row 7: expected a mapping or a text, got int"),
        ({"promt": "x"}, "has neither 'prompt' nor 'messages'.*mean promt"),
        ({"prompt": 3}, "field 'prompt' must be a text"),
        ({"messages": []}, "field 'messages' must be a list"),
        ({"messages": ["hi"]}, r"messages\[0\]: expected"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]: field 'content'"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "'usr' is none of.*user"),
        (
            {"messages": [USER, {"role": "assistant", "content": "x"}]},
            "ends with an assistant's message",
        ),
    ],
)
def test_bad_rows_are_named(row, message):
    with pytest.raises(DataError, match=message):
        read(row)
