"""What counts as rows; the sources themselves are tried in test_module."""

import itertools
import json

import pytest
import torch

from nemo_rl.config.data import DataConfig
from nemo_rl.data.datasets.mixture import MixtureDataset, Source
from nemo_rl.data.interfaces import DatasetInterface
from nemo_rl.data.module import DataModule
from nemo_rl.data.sources import describe_row, fingerprint, open_data, open_rows
from nemo_rl.utils.exceptions import CheckpointError, DataError
from tests.fakes.tokenizers import CHATML, character_tokenizer

CHAT = character_tokenizer(CHATML)


class Described(list):
    def describe_row(self, idx):
        return f"file, line {idx + 5}"


def test_rows_are_described_by_their_source():
    assert describe_row([1], 0) == "row 0"
    assert describe_row(Described([1]), 0) == "file, line 5"


def test_the_recipes_arguments_belong_to_the_recipes_dataset():
    kwargs = {"num_validation": 5}
    assert len(open_rows(None, "arithmetic", kwargs, None)) == 194
    assert len(open_rows("arithmetic", "arithmetic", kwargs, None)) == 194
    assert len(open_rows("arithmetic", None, kwargs, None)) == 151


def test_fingerprints_see_count_content_and_order():
    rows = [{"a": 1}, {"a": 2}]
    prints = {fingerprint(r) for r in (rows, rows[:1], rows[::-1], [*rows, rows[0]])}
    assert len(prints) == 4 and fingerprint(list(rows)) == fingerprint(rows)
    assert fingerprint(list(range(10_000))) != fingerprint(list(range(9_999)))


def mixed(entries, **settings):
    return open_data(DataConfig.from_mapping({"mixture": entries, **settings}))


def written(path, count):
    lines = (f'{{"question": "{path.stem}{i}", "answer": {i}}}\n' for i in range(count))
    path.write_text("".join(lines))
    return str(path)


def test_a_mixture_renames_fields_and_names_its_sources(tmp_path):
    file = written(tmp_path / "a.jsonl", 10)
    rows, held_out = mixed(
        [
            {"dataset_name": "reverse_digits", "dataset_kwargs": {"size": 40}},
            {
                "dataset_name": file,
                "columns": {"prompt": "question"},
                "task_name": "sums",
            },
        ]
    )
    assert held_out is None and len(rows) == 50
    own = [row for row in rows if row["task_name"] == "sums"]
    assert len(own) == 10 and {"prompt", "question", "answer"} < set(own[0])
    assert sorted(row["prompt"] for row in own) == [f"a{i}" for i in range(10)]
    places = [rows.describe_row(i) for i in range(50)]
    assert f"data.mixture[1] ({file}): {file}, line 3" in places
    assert rows.default_environment is None
    wrong = [{"dataset_name": file, "columns": {"prompt": "questoin"}}]
    with pytest.raises(
        DataError, match="line .*has no field 'questoin'.*mean question"
    ):
        mixed(wrong)[0][0]


def test_what_is_held_out_of_a_mixture_is_never_trained_on(tmp_path):
    entries = [
        {"dataset_name": written(tmp_path / "a.jsonl", 20), "weight": 1},
        {"dataset_name": written(tmp_path / "b.jsonl", 10), "weight": 3},
    ]
    rows, held_out = mixed(entries, split_validation_size=0.1)
    assert rows.counts == [18, 54] and len(held_out) == 3
    trained = {row["question"] for row in rows}
    assert len(trained) == 27
    assert not trained & {row["question"] for row in held_out}
    # Another seed of the order holds the same rows out.
    config = DataConfig.from_mapping({"mixture": entries, "split_validation_size": 0.1})
    other, same = open_data(config, seed=7)
    assert [row for row in same] == [row for row in held_out]
    assert [row for row in other] != [row for row in rows]


def test_a_mixture_resumes_where_it_stopped(tmp_path):
    entries = [
        {"dataset_name": "reverse_digits", "dataset_kwargs": {"size": 20}, "weight": 1},
        {"dataset_name": "arithmetic", "dataset_kwargs": {"size": 5}, "weight": 1},
    ]

    def module(weight=1):
        changed = [entries[0], {**entries[1], "weight": weight}]
        return DataModule(None, CHAT, {"mixture": changed}, seed=3)

    straight = [b["prompt"] for b in itertools.islice(module().batches(8), 12)]
    stopped = module()
    begun = [b["prompt"] for b in itertools.islice(stopped.batches(8), 7)]
    resumed = module()
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert begun + [b["prompt"] for b in itertools.islice(resumed.batches(8), 5)] == (
        straight
    )
    with pytest.raises(CheckpointError, match="its number of rows was 40"):
        module(weight=2).load_state_dict(stopped.state_dict())


def test_what_is_given_comes_before_what_the_recipe_names():
    config = DataConfig.from_mapping(
        {"mixture": [{"dataset_name": "arithmetic"}], "split_validation_size": 0.2}
    )
    rows, held_out = open_data(config, ["a", "b", "c", "d", "e"])
    assert (len(rows), len(held_out)) == (4, 1)
    rows, held_out = open_data(config, ["a"], ["b"])
    assert (list(rows), list(held_out)) == (["a"], ["b"])


def test_how_often_a_source_occurs_is_a_part_of_the_fingerprint():
    def parts(first):
        return MixtureDataset(
            [Source("a", first), Source("b", ["x"] * (4 - len(first)))]
        )

    assert fingerprint(parts(["x"])) != fingerprint(parts(["x", "x"]))


def test_preferences_serve_as_prompts():
    data = DataModule("arithmetic_preferences", CHAT)
    batch = next(data.batches(2))
    assert [m["role"] for m in batch["messages"][0]] == ["system", "user"]
    assert set(batch["row"][0]) == {"prompt", "chosen", "rejected", "task_name"}


def test_rows_of_tokens_are_handed_on_as_they_are():
    class Tokens(DatasetInterface):
        def __len__(self):
            return 3

        def __getitem__(self, idx):
            ids = torch.arange(idx + 2)
            mask = torch.ones_like(ids)
            return {"input_ids": ids, "attention_mask": mask, "labels": ids}

    rows, held_out = open_data(DataConfig(split_validation_size=1), Tokens())
    assert (len(rows), len(held_out)) == (2, 1)
    assert {len(row["input_ids"]) for row in [*rows, *held_out]} == {2, 3, 4}
    assert torch.equal(held_out[0]["labels"], held_out[0]["input_ids"])
