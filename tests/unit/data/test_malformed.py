"""Data that is wrong: every error says where, which field, and what was expected.

Each case is a source as a user would name it, opened and read to its end as a training
run does. Not covered: rows whose length is wrong (test_module.py), and what only the
hub itself could answer.
"""

import gzip
import json

import pytest

from nemo_rl.config.data import DataConfig
from nemo_rl.data.datasets import load_dataset
from nemo_rl.data.rows import RowReader
from nemo_rl.data.sources import describe_row, open_data
from nemo_rl.utils.exceptions import ConfigurationError, DataError

USER = {"role": "user", "content": "hi"}
GOOD = b'{"prompt": "a"}\n'


def read_all(config):
    """Open what a data section names and read every row."""
    config = DataConfig.from_mapping(config)
    rows, _ = open_data(config)
    reader = RowReader(config)
    return [reader.read(rows[i], describe_row(rows, i)) for i in range(len(rows))]


FILES = {
    "truncated line": ("a.jsonl", GOOD + b'{"prompt": "b', "line 2: not JSON .*col"),
    "missing value": ("a.jsonl", GOOD * 3 + b'{"prompt": }\n', "line 4: not JSON"),
    "two objects in a line": ("a.jsonl", GOOD + GOOD.strip() * 2, "line 2: .*Extra"),
    "a list for a row": ("a.jsonl", GOOD + b"[1]\n", "line 2: expected an object, got"),
    "a text for a row": ("a.jsonl", b'"a"\n', "line 1: expected an object, got str"),
    "null for a row": (
        "a.jsonl",
        b"\n\nnull\n",
        "line 3: expected an object, got None",
    ),
    "Latin-1": (
        "a.jsonl",
        GOOD + '{"prompt": "é"}'.encode("latin-1"),
        "line 2: not UTF-8 .byte 0xe9 at column 13",
    ),
    "UTF-16": ("a.jsonl", '{"prompt": "a"}'.encode("utf-16"), "line 1: not UTF-8"),
    "an empty file": ("a.jsonl", b"", "holds no rows"),
    "blank lines only": ("a.jsonl", b"\n \n\r\n", "holds no rows"),
    "an object for a list": (
        "a.json",
        b'{"prompt": "a"}',
        "expected a list of objects",
    ),
    "half a list": ("a.json", b'[\n{"prompt": "a"},\n', "line 3: not JSON"),
    "lines called .json": ("a.json", GOOD * 2, "line 2: .* call it .jsonl"),
    "an entry that is none": (
        "a.json",
        b'[{"prompt": "a"}, 3]',
        "entry 1: expected an",
    ),
    "binary called .json": ("a.json", b"\xff\xfe\x00", "a.json cannot be read"),
    "an empty list": ("a.json", b"[]", "holds no rows"),
    "a value too many": (
        "a.csv",
        b"prompt,answer\na,1\nb,2,3\n",
        r"line 3: has 3 values and the header names 2 columns \(prompt",
    ),
    "a value too few": (
        "a.csv",
        b'prompt,answer\n"a\nb",1\nc\n',
        "line 4: has 1 values",
    ),
    "a column twice": (
        "a.csv",
        b"prompt,prompt\na,b\n",
        "line 1: names 'prompt' twice",
    ),
    "a column without name": (
        "a.csv",
        b"prompt,\na,b\n",
        "line 1: a column has no name",
    ),
    "an open quote": ("a.csv", b'prompt\na\n"b\nc\n', "line 3: not CSV"),
    "Latin-1 in a table": (
        "a.csv",
        b"prompt\na\n\xe9\n",
        "line 3: not UTF-8 .byte 0xe9",
    ),
    "a header alone": ("a.csv", b"prompt,answer\n", "holds no rows"),
    "wrong columns": (
        "a.csv",
        b"promt,answer\na,1\n",
        "line 2: has neither 'prompt' nor 'messages'; its fields are",
    ),
    "tabs called .csv": (
        "a.csv",
        b"prompt\tanswer\na\t1\n",
        r"line 2: .*\['prompt.tanswer'\]",
    ),
    "no Parquet": ("a.parquet", b"prompt,answer\n", "a.parquet cannot be read as Parq"),
    "half a Parquet": ("a.parquet", b"PAR1" + b"\0" * 64, "a.parquet cannot be read"),
    "no Arrow": ("a.arrow", b"prompt", "a.arrow cannot be read as Arrow"),
    "gzip": ("a.jsonl.gz", gzip.compress(GOOD), "compressed.* gunzip -k .*a.jsonl.gz"),
    "zstandard": ("a.jsonl.zst", b"\x28\xb5\x2f\xfd", "compressed.* zstd -d "),
    "an unknown ending": ("a.jsnl", GOOD, "'.jsnl' is none of .*Did you mean .jsonl"),
    "no ending": ("rows", GOOD, "the ending '' is none of .jsonl"),
}


@pytest.mark.parametrize("case", FILES)
def test_files(case, tmp_path, datasets):
    name, content, message = FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_all({"dataset_name": str(tmp_path / name)})
    assert str(tmp_path / name) in str(error.value)


FOLDERS = {
    "an empty folder": ({}, "holds no data: expected .parquet, .jsonl"),
    "nothing that is data": ({"a.bin": b"x"}, "holds no data: expected .parquet"),
    "a damaged save": ({"state.json": b"{"}, "is not what save_to_disk"),
    "a save without data": (
        {"dataset_dict.json": b'{"splits": ["train"]}'},
        "is not what save_to_disk",
    ),
    "a bad line": ({"train.jsonl": GOOD + b'{"prompt":'}, "train.jsonl, line 2: not J"),
    "a bad table": ({"train.parquet": b"x"}, "train.parquet cannot be read as Parquet"),
    "no training split": ({"test.jsonl": GOOD}, "no split 'train'; it has test"),
    "a list of no files": (
        {
            "README.md": b"---\nconfigs:\n- config_name: default\n"
            b"  data_files: absent/*\n---\n",
            "a.jsonl": GOOD,
        },
        "holds no data",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders(case, tmp_path, datasets):
    files, message = FOLDERS[case]
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_all({"dataset_name": str(folder)})
    assert str(folder) in str(error.value)


ROWS = {
    "no prompt": ({"promt": "a"}, "has neither 'prompt' .*its fields are .'promt'"),
    "tokens for a prompt": ({"input_ids": [1], "labels": [1]}, "has neither 'prompt'"),
    "a number": ({"prompt": 3}, "field 'prompt' must be a text .*got 3"),
    "null": ({"prompt": None}, "field 'prompt' must be a text"),
    "an empty prompt": (
        {"prompt": ""},
        "field 'prompt' must be a text that is not emp",
    ),
    "no messages": ({"messages": []}, "field 'messages' must be a list of messages"),
    "a text for messages": ({"messages": "hi"}, "field 'messages' must be a list"),
    "one message alone": ({"messages": USER}, "field 'messages' must be a list"),
    "texts for messages": ({"messages": ["hi"]}, r"messages\[0\]: expected {'role'"),
    "no content": (
        {"messages": [USER, {"role": "user"}]},
        r"messages\[1\]: field 'con",
    ),
    "no role": ({"messages": [{"content": "a"}]}, r"messages\[0\]: field 'role' must"),
    "null content": (
        {"messages": [{**USER, "content": None}]},
        "'content' must be a t",
    ),
    "an unknown role": (
        {"messages": [{**USER, "role": "humna"}]},
        "'humna' is none of",
    ),
    "a misspelt role": ({"prompt": [{**USER, "role": "usr"}]}, "Did you mean user"),
    "an answered prompt": (
        {"messages": [USER, {**USER, "role": "assistant"}]},
        "ends with an assistant's message",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_rows(case, tmp_path):
    row, message = ROWS[case]
    file = tmp_path / "a.jsonl"
    file.write_bytes(GOOD + b"\n" + json.dumps(row).encode())
    with pytest.raises(DataError, match=f"a.jsonl, line 3: .*{message}"):
        read_all({"dataset_name": str(file)})


YES = {"role": "assistant", "content": "yes"}
PUBLISHED = {
    "no final answer": (
        "gsm8k",
        {"question": "a", "answer": "So 5."},
        "'answer' must end with '#### '",
    ),
    "an empty final answer": (
        "gsm8k",
        {"question": "a", "answer": "5 ####  "},
        "'answer' must end with",
    ),
    "no box": ("math", {"problem": "a", "solution": "5"}, "'solution' has no .boxed"),
    "an empty question": (
        "deepscaler",
        {"problem": " ", "answer": "5"},
        "'problem' must be a text that is not empty",
    ),
    "a number for an answer": (
        "deepscaler",
        {"problem": "a", "answer": 5},
        "'answer' must be a text .*got 5",
    ),
    "other columns": (
        "openmathinstruct-2",
        {"question": "a"},
        "lacks the columns problem, generated_solution, expected_answer",
    ),
    "a rating in words": (
        "helpsteer2",
        {"prompt": "a", "response": "b", "helpfulness": "high"},
        "'helpfulness' must be a whole number from 0 to 4, got 'high'",
    ),
    "a rating too high": (
        "helpsteer2",
        {"prompt": "a", "response": "b", "helpfulness": 5},
        "'helpfulness' must be a whole number .*got 5",
    ),
    "no rating": (
        "helpsteer2",
        {"prompt": "a", "response": "b", "helpfulness": None},
        "'helpfulness' must be a whole number .*got None",
    ),
    "a prompt of messages": (
        "helpsteer2",
        {"prompt": [USER], "response": "b", "helpfulness": 1},
        "'prompt' must be a text",
    ),
    "half a preference": (
        "helpsteer3",
        {
            "context": [USER],
            "response1": "a",
            "response2": "b",
            "overall_preference": 0.5,
        },
        "'overall_preference' must be a whole number from -3 to 3",
    ),
    "a preference too strong": (
        "helpsteer3",
        {
            "context": [USER],
            "response1": "a",
            "response2": "b",
            "overall_preference": -4,
        },
        "'overall_preference' must be .*got -4",
    ),
    "a missing response": (
        "helpsteer3",
        {
            "context": [USER],
            "response1": "a",
            "response2": None,
            "overall_preference": 1,
        },
        "'response2' must be a text",
    ),
    "pairs of two prompts": (
        "ultrafeedback",
        {
            "prompt": "a",
            "chosen": [USER, YES],
            "rejected": [{**USER, "content": "ho"}, YES],
        },
        "'chosen' and 'rejected' must be the same prompt",
    ),
    "a text for a pair": (
        "ultrafeedback",
        {"prompt": "a", "chosen": "yes", "rejected": "no"},
        "'chosen' must be a list of messages",
    ),
    "a pair without answer": (
        "ultrafeedback",
        {"prompt": "a", "chosen": [USER, USER], "rejected": [USER, YES]},
        "last message of 'chosen' must be the assistant's",
    ),
    "nothing to learn": (
        "tulu3_sft_mixture",
        {"messages": [USER]},
        "ends with the assistant's message, this one with .*'user'",
    ),
    "no conversation": (
        "tulu3_sft_mixture",
        {"messages": None},
        "'messages' must be a list of messages",
    ),
    "half a message": (
        "tulu3_sft_mixture",
        {"messages": [USER, {"role": "assistant"}]},
        r"messages\[1\]: field 'content' must be a text, got None",
    ),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_copies_of_published_datasets(case, tmp_path):
    name, row, message = PUBLISHED[case]
    file = tmp_path / "copy.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(DataError, match=message) as error:
        read_all({"dataset_name": name, "dataset_kwargs": {"path": str(file)}})
    place = f"{file}, line 1: " if "lacks" not in message else f"{file} lacks"
    assert str(error.value).startswith(place)


A, B = {"dataset_name": "a", "weight": 1}, {"dataset_name": "b", "weight": 1}
SECTIONS = {
    "a weight of 0": (
        {"mixture": [A, {**B, "weight": 0}]},
        r"mixture\[1\].weight=0.*expected a number above 0.*remove",
    ),
    "weights of 0": (
        {"mixture": [{**A, "weight": 0}, {**B, "weight": 0}]},
        r"(?s)mixture\[0\].weight=0.*mixture\[1\].weight=0",
    ),
    "a negative weight": ({"mixture": [{**A, "weight": -1}]}, "weight=-1.* above 0"),
    "a weight without end": ({"mixture": [{**A, "weight": "inf"}]}, "above 0"),
    "a weight in words": ({"mixture": [{**A, "weight": "half"}]}, "weight='half'"),
    "half the weights": (
        {"mixture": [A, {"dataset_name": "b"}]},
        r"mixture\[1\] has no weight and others have one",
    ),
    "a source twice": ({"mixture": [A, B, A]}, r"mixture\[2\] is mixture\[0\] .'a'"),
    "a source without name": ({"mixture": [{"weight": 1}]}, "dataset_name is required"),
    "a misspelt key of a source": (
        {"mixture": [{**A, "wieght": 2}]},
        r"mixture\[0\].wieght is not a field.*mean weight",
    ),
    "one source, no list": ({"mixture": A}, "mixture=.*expected a valid list"),
    "columns as a list": (
        {"mixture": [{**A, "columns": ["prompt"]}]},
        r"mixture\[0\].columns=.*expected a valid dict",
    ),
    "a dataset and a mixture": (
        {"dataset_name": "c", "mixture": [A]},
        "mixture replaces dataset_name='c'",
    ),
    "a misspelt key": (
        {"datset_name": "a"},
        "datset_name is not a field.*dataset_name",
    ),
    "less than nothing held out": ({"split_validation_size": -1}, "greater than or eq"),
    "two rows and a half": ({"split_validation_size": 2.5}, "neither a fraction below"),
    "validation twice": (
        {"split_validation_size": 2, "val_dataset_name": "v"},
        "takes the validation rows from the training rows and val_d",
    ),
}


@pytest.mark.parametrize("case", SECTIONS)
def test_sections(case):
    section, message = SECTIONS[case]
    with pytest.raises(ConfigurationError, match=message):
        DataConfig.from_mapping(section)


NAMES = {
    "a slip of the pen": ("arithmetc", {}, "No dataset 'arithmetc'.*mean arithmetic"),
    "a slip of a published name": ("gms8k", {}, "No dataset 'gms8k'.*mean gsm8k"),
    "a file that is not there": ("./a.jsonl", {}, "'./a.jsonl' does not exist .looked"),
    "a misspelt argument": (
        "arithmetic",
        {"digit": 1},
        "'digit'. It takes split, num_",
    ),
    "a misspelt split": (
        "arithmetic",
        {"split": "valid"},
        "expected train or validati",
    ),
    "a split of a file": (
        __file__,
        {"split": "train"},
        "argument 'split'. It takes non",
    ),
    "no rows wanted": ("arithmetic", {"size": 0}, "size=0: a split needs at least 1"),
    "no published rows wanted": (
        "gsm8k",
        {"size": 0},
        "size=0: gsm8k needs at least 1",
    ),
    "all held out": ("arithmetic", {"num_validation": 500}, "leaves nothing for train"),
    "no module": ("nowhere:rows", {}, "no module named nowhere"),
    "no such function": ("json:rows", {}, "json has no 'rows'"),
    "nothing at all": ("", {}, "data.dataset_name is empty"),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_and_arguments(case):
    name, arguments, message = NAMES[case]
    with pytest.raises(ConfigurationError, match=message):
        load_dataset(name, **arguments)
