"""DataModule: every source, one order per seed, exact resume, named bad rows."""

import itertools
import json

import pytest
import torch

from nemo_rl.config.data import DataConfig
from nemo_rl.data.datasets.arithmetic import ArithmeticDataset
from nemo_rl.data.interfaces import DatasetInterface
from nemo_rl.data.module import DataModule
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError, DataError
from tests.fakes.tokenizers import CHATML, character_tokenizer

PLAIN = character_tokenizer()
CHAT = character_tokenizer(CHATML)
ROWS = [{"prompt": "ab" * (i % 3 + 1), "answer": str(i)} for i in range(10)]


def seen(module, batches, size=3):
    chosen = itertools.islice(module.batches(size), batches)
    return [batch["idx"].tolist() for batch in chosen]


def test_a_batch_has_every_column_of_the_contract():
    batch = next(DataModule(ROWS, PLAIN, {"shuffle": False}).batches(3))
    assert set(batch) == {
        "input_ids", "input_lengths", "idx", "prompt",
        "messages", "answer", "task_name", "row",
    }  # fmt: skip
    assert batch["input_lengths"].tolist() == [2, 4, 6]
    assert batch["input_ids"].dtype == batch["idx"].dtype == torch.int64
    assert batch["input_ids"][0, 2:].tolist() == [0, 0, 0, 0]
    assert PLAIN.decode(batch["input_ids"][1, :4]) == "abab"
    assert batch["prompt"] == ["ab", "abab", "ababab"]
    assert batch["messages"][0] == [{"role": "user", "content": "ab"}]
    assert batch["answer"] == ["0", "1", "2"] and batch["row"][1] == ROWS[1]
    assert batch["task_name"] == ["default"] * 3


def test_a_chat_template_renders_plain_prompts_too():
    batch = next(DataModule(["hi"], CHAT).batches(1))
    assert batch["prompt"] == [
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    ]
    assert CHAT.decode(batch["input_ids"][0]) == batch["prompt"][0]


def test_each_epoch_shuffles_anew_and_drops_the_rest():
    module = DataModule(ROWS, PLAIN, seed=1)
    assert module.steps_per_epoch(3) == 3
    order = list(itertools.chain(*seen(module, 6)))
    first, second = order[:9], order[9:]
    assert len(set(first)) == 9 and len(set(second)) == 9 and first != second
    assert module.epoch == 1
    again = list(itertools.chain(*seen(DataModule(ROWS, PLAIN, seed=1), 6)))
    other = list(itertools.chain(*seen(DataModule(ROWS, PLAIN, seed=2), 6)))
    assert again == order and other != order


def test_the_order_ignores_every_global_generator():
    torch.manual_seed(1)
    first = seen(DataModule(ROWS, PLAIN), 3)
    torch.manual_seed(2)
    torch.rand(5)
    assert seen(DataModule(ROWS, PLAIN), 3) == first
    module = DataModule(ROWS, PLAIN, {"seed": 7}, seed=1)
    assert module.seed == 7


@pytest.mark.parametrize("steps", range(8))
def test_resume_continues_exactly(steps):
    straight = seen(DataModule(ROWS, PLAIN), 8)
    stopped = DataModule(ROWS, PLAIN)
    begun = seen(stopped, steps)
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = DataModule(ROWS, PLAIN)
    resumed.load_state_dict(state)
    assert begun + seen(resumed, 8 - steps) == straight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: DataModule(ROWS[:-1], PLAIN), "number of rows was 10 and is now 9"),
        (lambda: DataModule([*ROWS[:-1], "x"], PLAIN), "its content was"),
        (lambda: DataModule(ROWS, PLAIN, seed=5), "its seed was 42 and is now 5"),
        (lambda: DataModule(ROWS, PLAIN, {"shuffle": False}), "its shuffle setting"),
    ],
)
def test_another_dataset_is_refused_on_resume(change, message):
    state = DataModule(ROWS, PLAIN).state_dict()
    with pytest.raises(CheckpointError, match=message):
        change().load_state_dict(state)


def test_validation_keeps_its_last_smaller_batch_and_order():
    module = DataModule(ROWS, PLAIN, val_dataset=ROWS[:5])
    sizes = [[b.size for b in module.validation_batches(None, 2)] for _ in range(2)]
    assert sizes == [[2, 2, 1]] * 2
    limited = list(module.validation_batches(3, 2))
    assert [i for b in limited for i in b["idx"].tolist()] == [0, 1, 2]
    assert module.has_validation
    without = DataModule(ROWS, PLAIN)
    assert not without.has_validation
    assert list(without.validation_batches(9, 2)) == []


class Mine(DatasetInterface):
    def __len__(self):
        return 4

    def __getitem__(self, idx):
        return {"prompt": f"q{idx}"}


class Lengthless(DatasetInterface):
    def __getitem__(self, idx):
        return {"prompt": "q"}


def test_every_kind_of_source(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list(ROWS)
    both = datasets.DatasetDict({"train": made, "validation": made.select(range(2))})
    made.save_to_disk(str(tmp_path / "disk"))
    for source in (ROWS, str(file), file, made, both, str(tmp_path / "disk"), Mine()):
        module = DataModule(source, PLAIN, {"shuffle": False})
        assert next(module.batches(2)).size == 2, source
    assert len(list(DataModule(ROWS, PLAIN, val_dataset=both).validation_batches(9, 9)))
    with pytest.raises(TypeError, match="Lengthless has no __len__"):
        DataModule(Lengthless(), PLAIN)


def test_a_module_without_tokenizer_hands_its_rows_on():
    bare = DataModule(ROWS, val_dataset=ROWS[:2])
    with pytest.raises(ConfigurationError, match="has no tokenizer"):
        next(bare.batches(2))
    module = DataModule.create(bare, PLAIN, {}, seed=3)
    assert module is not bare and module.has_validation and len(module) == 10

    class Own(DataModule):
        pass

    own = Own(ROWS, PLAIN)
    assert DataModule.create(own, PLAIN, {}, seed=3) is own


def test_registered_names_and_their_arguments():
    config = {
        "dataset_name": "arithmetic",
        "dataset_kwargs": {"num_validation": 10},
        "val_dataset_name": "arithmetic",
        "val_dataset_kwargs": {"split": "validation", "num_validation": 10},
    }
    module = DataModule(None, CHAT, config)
    assert len(module) == 200 - 10 - 1
    assert sum(b.size for b in module.validation_batches(None, 4)) == 10
    assert module.default_environment == "exact_match"
    given = DataModule("reverse_digits", CHAT, config)
    assert len(given) == 10000 - 256


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (None, ConfigurationError, "No dataset: set data.dataset_name"),
        ([], DataError, "the list holds no rows"),
        (3, DataError, "the int is no dataset"),
        ("nowhere.jsonl", DataError, "'nowhere.jsonl' does not exist"),
        ([{"prompt": "a"}, {"prompt": ""}], DataError, "row 1: field 'prompt'"),
    ],
)
def test_bad_sources_are_named(source, error, message):
    with pytest.raises(error, match=message):
        DataModule(source, PLAIN)


def test_too_few_rows_for_a_step():
    with pytest.raises(DataError, match="takes 32 rows and the dataset has only 10"):
        next(DataModule(ROWS, PLAIN).batches(32))


def test_a_long_prompt_names_row_length_and_limit(tmp_path):
    with pytest.raises(DataError, match="row 2: the prompt has 6 tokens.* is 5"):
        DataModule(ROWS, PLAIN, max_length=5)
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "ok"}\n\n{"prompt": "much too long"}\n')
    with pytest.raises(DataError, match="rows.jsonl, line 3: the prompt has 13 tokens"):
        DataModule(str(file), PLAIN, {"max_input_seq_length": 5})


def test_the_fingerprint_of_a_dataset_depends_on_its_rows():
    one = DataModule(ArithmeticDataset(seed=1)).fingerprint()
    assert one == DataModule(ArithmeticDataset(seed=1)).fingerprint()
    assert one != DataModule(ArithmeticDataset(seed=2)).fingerprint()


def test_a_registered_validation_dataset_defaults_to_its_validation_split(caplog):
    config = DataConfig(dataset_name="arithmetic", val_dataset_name="arithmetic")
    data = DataModule(None, CHAT, config)
    train = {data._item(i, False)["prompt"] for i in range(len(data))}
    held_out = [p for b in data.validation_batches(None, 16) for p in b["prompt"]]
    assert len(held_out) == 48 and not train & set(held_out)
    assert not caplog.records


def test_validation_on_training_prompts_is_said(caplog):
    rows = [{"prompt": f"{n} =", "answer": n} for n in range(4)]
    DataModule(rows, CHAT, val_dataset=rows[:2])
    assert "2 of 2 validation rows are training rows too" in caplog.text
