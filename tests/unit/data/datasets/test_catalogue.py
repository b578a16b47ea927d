"""Published datasets, from folders laid out like their copies.

The columns and splits are those that each dataset's page on the Hugging Face hub lists
(its README's dataset_info, or its table of fields); the rows are made up. Nothing is
downloaded, so whether the pages still say so is not tested.
"""

import gzip
import json

import pytest

from nemo_rl.data.datasets import load_dataset
from nemo_rl.data.datasets.catalogue import PUBLISHED, published
from nemo_rl.utils.exceptions import ConfigurationError, DataError

USER = {"content": "Hi", "role": "user"}
YES = {"content": "Yes", "role": "assistant"}
NO = {"content": "No", "role": "assistant"}
RATINGS = {"correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 1}
ASKED = [{"role": "user", "content": "Hi"}]
MATH = {"prompt": "1 + 1?", "answer": "2", "task_name": "math"}
PAIR = {"prompt": ASKED, "chosen": "Yes", "rejected": "No"}
TOLD = {"messages": [*ASKED, {"role": "assistant", "content": "Yes"}]}

LAYOUTS = {
    "deepscaler": (
        {None: ["train"]},
        [{"problem": "1 + 1?", "answer": "2", "solution": ""}],
        {"prompts": MATH},
    ),
    "gsm8k": (
        {"main": ["train", "test"], "socratic": ["train", "test"]},
        [{"question": "1 + 1?", "answer": "1+1 = <<1+1=2>>2.\n#### 2"}],
        {
            "prompts": MATH,
            "conversations": {
                "messages": [
                    {"role": "user", "content": "1 + 1?"},
                    {"role": "assistant", "content": "1+1 = 2.\n#### 2"},
                ],
                "answer": "2",
                "task_name": "math",
            },
        },
    ),
    "helpsteer2": (
        {None: ["train", "validation"]},
        [
            {"prompt": "Hi", "response": "Yes", "helpfulness": 4, **RATINGS},
            {"prompt": "Hi", "response": "No", "helpfulness": 1, **RATINGS},
        ],
        {"preferences": PAIR, "conversations": {**TOLD, "helpfulness": 4}},
    ),
    "helpsteer3": (
        {
            "preference": ["train", "validation"],
            "feedback": ["train", "validation"],
        },
        [
            {
                "domain": "general",
                "language": "english",
                "context": [USER],
                "response1": "No",
                "response2": "Yes",
                "overall_preference": 2,
                "individual_preference": [
                    {"score": 2, "reasoning": "r", "feedback1": "f", "feedback2": "f"}
                ],
            }
        ],
        {"preferences": PAIR},
    ),
    "math": (
        {
            config: ["train", "test"]
            for config in (
                "algebra", "counting_and_probability", "geometry",
                "intermediate_algebra", "number_theory", "prealgebra", "precalculus",
            )
        },
        [
            {
                "problem": "1 + 1?",
                "level": "Level 1",
                "type": "Algebra",
                "solution": r"$\boxed{2}$",
            }
        ],
        {
            "prompts": MATH,
            "conversations": {
                "messages": [
                    {"role": "user", "content": "1 + 1?"},
                    {"role": "assistant", "content": r"$\boxed{2}$"},
                ],
                "answer": "2",
                "task_name": "math",
            },
        },
    ),
    "openmathinstruct-2": (
        {None: ["train", "train_1M", "train_2M", "train_5M"]},
        [
            {
                "problem": "1 + 1?",
                "generated_solution": "Two.",
                "expected_answer": "2",
                "problem_source": "augmented_math",
            }
        ],
        {
            "prompts": MATH,
            "conversations": {
                "messages": [
                    {"role": "user", "content": "1 + 1?"},
                    {"role": "assistant", "content": "Two."},
                ],
                "answer": "2",
                "task_name": "math",
            },
        },
    ),
    "tulu3_sft_mixture": (
        {None: ["train"]},
        [{"id": "a_0", "messages": [USER, YES], "source": "allenai/coconot"}],
        {"conversations": TOLD},
    ),
    "ultrafeedback": (
        {
            None: [
                "train_prefs", "train_sft", "test_prefs", "test_sft",
                "train_gen", "test_gen",
            ]
        },
        [
            {
                "prompt": "Hi",
                "prompt_id": "0",
                "chosen": [USER, YES],
                "rejected": [USER, NO],
                "messages": [USER, YES],
                "score_chosen": 8.0,
                "score_rejected": 3.0,
            }
        ],
        {"preferences": PAIR, "conversations": TOLD},
    ),
}  # fmt: skip
"""Name -> subsets with their splits, rows as published, first row in each shape."""


def copied(folder, name, datasets):
    """Write what `hf download --local-dir` would: data files, and mostly the page."""
    subsets, rows, _ = LAYOUTS[name]
    folder.mkdir()
    if name == "deepscaler":  # one list, no split in its name
        (folder / "deepscaler.json").write_text(json.dumps(rows))
        return folder
    if name == "helpsteer2":  # compressed lines, beside other subsets' folders
        other = [{"split": "train", "prompt": "Hi", "response_1": "No"}]
        for file, content in (
            ("train", rows),
            ("validation", rows),
            ("preference/preference", other),
            ("disagreements/disagreements", other),
        ):
            path = folder / f"{file}.jsonl.gz"
            path.parent.mkdir(exist_ok=True)
            lines = "".join(json.dumps(row) + "\n" for row in content)
            path.write_bytes(gzip.compress(lines.encode()))
        return folder
    table = datasets.Dataset.from_list(rows)
    page = ["---", "configs:"]
    for subset, splits in subsets.items():
        below = subset or "data"
        (folder / below).mkdir()
        page += [f"- config_name: {subset or 'default'}", "  data_files:"]
        for split in splits:
            page += [f"  - split: {split}", f"    path: {below}/{split}-*"]
            table.to_parquet(str(folder / below / f"{split}-00000-of-00001.parquet"))
    (folder / "README.md").write_text("\n".join([*page, "---", ""]))
    return folder


def test_every_published_dataset_is_tried():
    assert set(LAYOUTS) == set(PUBLISHED)
    assert {n: set(PUBLISHED[n].shapes) for n in LAYOUTS} == {
        name: set(shapes) for name, (_, _, shapes) in LAYOUTS.items()
    }


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_copy_gives_rows_of_every_shape(name, tmp_path, datasets):
    subsets, rows, shapes = LAYOUTS[name]
    folder = copied(tmp_path / "copy", name, datasets)
    entry = PUBLISHED[name]
    used = [s for s in subsets if s in entry.configs] or [None]
    for shape, expected in shapes.items():
        read = load_dataset(name, path=str(folder), shape=shape)
        assert read[0] == expected
        per_subset = 1 if shape == "preferences" else len(rows)
        assert len(read) == per_subset * len(used)
        assert str(folder) in read.describe_row(0)
    assert load_dataset(entry.hub, path=str(folder))[0] == next(iter(shapes.values()))
    splits = next(iter(subsets.values()))
    theirs = entry.splits.get("validation", "validation")
    if theirs in splits:
        assert load_dataset(name, split="validation", path=str(folder))[0]
    else:
        with pytest.raises(DataError, match=f"no split '{theirs}'; it has {splits[0]}"):
            load_dataset(name, path=str(folder), split="validation")


def test_a_copy_may_be_saved_or_a_file(tmp_path, datasets):
    rows = LAYOUTS["gsm8k"][1] * 3
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(str(tmp_path / "saved"))
    table.to_parquet(str(tmp_path / "a.parquet"))
    for place in ("saved", "a.parquet"):
        read = load_dataset("gsm8k", path=place, search_dir=tmp_path, size=2)
        assert len(read) == 2 and read[1] == MATH
    with pytest.raises(IndexError):
        read[2]


def test_a_saved_copy_with_a_page_is_read_once(tmp_path, datasets):
    table = datasets.Dataset.from_list(LAYOUTS["math"][1])
    saved = datasets.DatasetDict({"train": table, "test": table})
    saved.save_to_disk(str(tmp_path))
    (tmp_path / "README.md").write_text("MATH")
    for split in ("train", "validation"):
        assert len(load_dataset("math", path=str(tmp_path), split=split)) == 1


def test_names():
    assert published("OpenMathInstruct-2") == published("nvidia/openmathinstruct-2")
    assert published("DeepScaler") == "deepscaler" and published("squad") is None


def test_what_a_published_dataset_is_not(tmp_path, datasets):
    with pytest.raises(
        ConfigurationError,
        match="hf download openai/gsm8k --repo-type .* data.dataset_kwargs.path",
    ):
        load_dataset("gsm8k")
    with pytest.raises(
        DataError, match="'absent' of openai/gsm8k does not exist.*hf d"
    ):
        load_dataset("gsm8k", path="absent")
    with pytest.raises(ConfigurationError, match="no shape 'prompt'; .*mean prompts"):
        load_dataset("gsm8k", path=str(tmp_path), shape="prompt")
    with pytest.raises(ConfigurationError, match="It takes split, path, shape, size"):
        load_dataset("gsm8k", pth="x")
    folder = copied(tmp_path / "copy", "math", datasets)
    with pytest.raises(DataError, match="cannot be read.*'main' not found"):
        load_dataset("gsm8k", path=str(folder))
