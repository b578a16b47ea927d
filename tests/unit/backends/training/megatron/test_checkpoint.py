"""Checkpoints: continue under any layout, bit for bit under the same, or say why not.

Covers fp32 on CPU with the distributed optimizer.
"""

from __future__ import annotations

import pickle
import shutil

import pytest
import torch

from nemo_rl.utils.exceptions import CheckpointError
from tests.fakes import models
from tests.functional.ranks import run_ranks
from tests.functional.sessions import LAYOUTS, Session, merged

WARM_UP = {"scheduler": [{"name": "LinearLR", "kwargs": {"total_iters": 10}}]}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "qwen2"
    return models.save(folder, "qwen2", tied=True, layers=2, hidden=128)


def _uninterrupted(rank, folder, layout, path, megatron=None):
    """Four updates, with a checkpoint after the second."""
    session = Session(
        rank, folder, layout, seed=5, megatron_cfg=megatron or {}, **WARM_UP
    )
    steps = [session.step(0), session.step(1)]
    session.draws()
    session.save(path)
    return {
        "draws": session.draws(),
        "steps": [*steps, session.step(2), session.step(3)],
        "weights": session.weights(),
        "updates": session.backend.updates,
    }


def _resumed(rank, folder, layout, path, megatron=None):
    """The last two updates, in a new process with other seeds."""
    session = Session(
        rank, folder, layout, seed=99, megatron_cfg=megatron or {}, **WARM_UP
    )
    session.backend.load_checkpoint(path)
    return {
        "draws": session.draws(),
        "steps": [session.step(2), session.step(3)],
        "weights": session.weights(),
        "updates": session.backend.updates,
        "buckets": sum(len(buffer.buckets) for buffer in session.backend.ddp.buffers),
    }


BUCKETS = {
    "use_distributed_optimizer": True,
    "overlap_grad_reduce": True,
    "distributed_data_parallel_config": {"bucket_size": 3000},
}


@pytest.mark.parametrize("layout", ["dp2", "pp2"])
def test_several_padded_buckets_continue_bit_for_bit(tmp_path, layout):
    """Sizes that the buckets' alignment does not divide: each ends in padding."""
    folder = tmp_path / "model"
    models.save(folder, "qwen2", tied=True, layers=2, hidden=32)
    world, path = LAYOUTS[layout][0], tmp_path / "checkpoint"
    straight = run_ranks(_uninterrupted, world, folder, layout, path, BUCKETS)
    resumed = run_ranks(_resumed, world, folder, layout, path, BUCKETS)
    for got, want in zip(resumed, straight, strict=True):
        assert got["buckets"] > 1
        assert got["steps"] == want["steps"][2:]
        for name, value in want["weights"].items():
            assert torch.equal(got["weights"][name], value), name


@pytest.fixture(scope="module")
def saved(source, tmp_path_factory):
    """Layout to (results by rank, checkpoint) of an uninterrupted run; made once."""
    made = {}

    def get(layout):
        if layout not in made:
            path = tmp_path_factory.mktemp("checkpoint") / layout
            world = LAYOUTS[layout][0]
            made[layout] = run_ranks(_uninterrupted, world, source, layout, path), path
        return made[layout]

    return get


def total(results, layout, index):
    """Loss of an update: the sum of the shares of data-parallel ranks."""
    losses = [r["steps"][index]["loss"] for r in results]
    return sum(losses) if layout != "tp2" else losses[0]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_layout_continues_bit_for_bit(source, saved, layout):
    straight, path = saved(layout)
    for got, want in zip(
        run_ranks(_resumed, LAYOUTS[layout][0], source, layout, path),
        straight,
        strict=True,
    ):
        assert got["draws"] == want["draws"]
        assert got["steps"] == want["steps"][2:]
        assert got["updates"] == 4
        assert got["weights"].keys() == want["weights"].keys()
        for name, value in want["weights"].items():
            assert torch.equal(got["weights"][name], value), name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("one", "tp2"),
        ("one", "pp2"),
        ("one", "dp2"),
        ("tp2", "one"),
        ("tp2", "pp2"),
        ("pp2", "dp2"),
        ("dp2", "tp2"),
    ],
)
def test_another_layout_continues_with_the_same_numbers(source, saved, old, new):
    straight, path = saved(old)
    resumed = run_ranks(_resumed, LAYOUTS[new][0], source, new, path)
    for index in (0, 1):
        got, want = resumed[0]["steps"][index], straight[0]["steps"][index + 2]
        assert total(resumed, new, index) == pytest.approx(
            total(straight, old, index + 2), abs=1e-5
        )
        assert got["grad_norm"] == pytest.approx(want["grad_norm"], abs=1e-5)
        assert got["learning_rate"] == want["learning_rate"]
    weights = merged([r["weights"] for r in resumed])
    want = merged([r["weights"] for r in straight])
    assert weights.keys() == want.keys()
    for name, value in want.items():
        assert (weights[name] - value).abs().max() <= 1e-5, name


def test_learning_rate_follows_the_restored_update_count(saved):
    straight, _ = saved("one")
    rates = [step["learning_rate"] for step in straight[0]["steps"]]
    assert rates == sorted(rates) and len(set(rates)) == 4


def _fresh_draws(rank, folder, layout):
    return Session(rank, folder, layout, seed=99, **WARM_UP).draws()


def test_another_layout_keeps_its_own_generators(source, saved):
    _, path = saved("one")
    fresh = run_ranks(_fresh_draws, 2, source, "tp2")
    resumed = run_ranks(_resumed, 2, source, "tp2", path)
    assert [r["draws"] for r in resumed] == fresh


def _without_optimizer(rank, folder, path, exported):
    session = Session(rank, folder, "one")
    session.step(0)
    session.step(1)
    session.save(path, with_optimizer=False)
    exported.mkdir()
    session.backend.save_hf(exported)
    return session.weights()


def _one_more_update(rank, folder, path):
    session = Session(rank, folder, "one")
    if path is not None:
        session.backend.load_checkpoint(path)
    before = session.weights()
    session.step(2)
    return before, session.backend.updates, session.weights()


def test_checkpoint_without_optimizer_continues_with_a_fresh_one(source, tmp_path):
    exported, path = tmp_path / "hf", tmp_path / "checkpoint"
    (want,) = run_ranks(_without_optimizer, 1, source, path, exported)
    ((loaded, updates, after),) = run_ranks(_one_more_update, 1, source, path)
    # The same weights from a Hugging Face folder have no optimizer state either.
    ((base, _, fresh),) = run_ranks(_one_more_update, 1, exported, None)
    assert updates == 3
    for name, value in want.items():
        assert torch.equal(loaded[name], value), name
        assert torch.equal(base[name], value), name
        assert torch.equal(after[name], fresh[name]), name
        assert not torch.equal(after[name], value), name


def _from_the_start(rank, folder, path, distributed):
    """Save before any update, load, and make two; the weights on the way."""
    megatron = {"use_distributed_optimizer": distributed}
    session = Session(rank, folder, "one", megatron_cfg=megatron)
    session.save(path)
    before = session.weights()
    session.step(0)
    session.step(1)
    after = session.weights()
    session.backend.load_checkpoint(path)
    restored = session.weights()
    session.step(0)
    session.step(1)
    return before, restored, after, session.weights()


@pytest.mark.parametrize("distributed", [True, False])
def test_a_checkpoint_may_precede_the_first_update(source, tmp_path, distributed):
    path = tmp_path / "checkpoint"
    ((before, restored, after, again),) = run_ranks(
        _from_the_start, 1, source, path, distributed
    )
    for name, value in before.items():
        assert torch.equal(restored[name], value), name
        assert torch.equal(again[name], after[name]), name


def _bf16_without_optimizer(rank, folder, path, distributed):
    megatron = {"use_distributed_optimizer": distributed}
    changes = {"precision": "bfloat16", "megatron_cfg": megatron}
    session = Session(rank, folder, "one", **changes)
    session.step(0)
    session.save(path, with_optimizer=False)
    want = session.weights()
    session.step(1)
    session.backend.load_checkpoint(path)
    loaded = session.weights()
    # An update of size zero writes the fp32 masters into the weights.
    session.backend.config.optimizer.kwargs.lr = 0.0
    session.step(2)
    return want, loaded, session.weights()


@pytest.mark.parametrize("distributed", [True, False])
def test_masters_follow_weights_that_come_without_an_optimizer(
    source, tmp_path, distributed
):
    ((want, loaded, after),) = run_ranks(
        _bf16_without_optimizer, 1, source, tmp_path / "c", distributed
    )
    for name, value in want.items():
        assert torch.equal(loaded[name], value), name
        assert torch.equal(after[name], value), name


def _load_all(rank, folder, paths):
    """Try each checkpoint; the message of its CheckpointError, or what happened."""
    session, answers = Session(rank, folder, "one"), {}
    for name, path in paths.items():
        try:
            session.backend.load_checkpoint(path)
            answers[name] = "loaded"
        except CheckpointError as error:
            answers[name] = f"CheckpointError: {error}"
        except BaseException as error:  # noqa: BLE001 - torch's own is no Exception
            answers[name] = f"{type(error).__name__}: {error}"
    return answers


def _cut(file, keep):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])


DAMAGE = {
    "no-contents": lambda path: (path / "contents.json").unlink(),
    "empty-contents": lambda path: (path / "contents.json").write_text(""),
    "list-contents": lambda path: (path / "contents.json").write_text("[]"),
    "null-contents": lambda path: (path / "contents.json").write_text("null"),
    "no-weights": lambda path: shutil.rmtree(path / "weights"),
    "cut-common": lambda path: _cut(path / "weights" / "common.pt", 0.5),
    "cut-shard": lambda path: _cut(next((path / "weights").glob("*.distcp")), 0.5),
    "no-shard": lambda path: next((path / "weights").glob("*.distcp")).unlink(),
    "cut-metadata": lambda path: _cut(path / "weights" / ".metadata", 0.5),
    "cut-generators": lambda path: _cut(path / "generators" / "rank00000.pt", 0.5),
    "empty-generators": lambda path: _cut(path / "generators" / "rank00000.pt", 0),
    "no-index": lambda path: (path / "weights" / "metadata.json").unlink(),
}


class Evil:
    def __reduce__(self):
        return (print, ("evil code ran",))


@pytest.mark.parametrize("file", [".metadata", "common.pt"])
def test_a_checkpoint_runs_no_code_of_its_own(source, saved, tmp_path, capfd, file):
    _, good = saved("one")
    path = shutil.copytree(good, tmp_path / "evil")
    if file == "common.pt":
        torch.save(Evil(), path / "weights" / file)
    else:
        (path / "weights" / file).write_bytes(pickle.dumps(Evil()))
    (answers,) = run_ranks(_load_all, 1, source, {"evil": path})
    assert answers["evil"].startswith("CheckpointError: could not read")
    assert "evil code ran" not in capfd.readouterr().out


def test_damaged_checkpoints_say_so(source, saved, tmp_path):
    _, good = saved("one")
    paths = {}
    for name, damage in DAMAGE.items():
        paths[name] = shutil.copytree(good, tmp_path / name)
        damage(paths[name])
    paths["missing"] = tmp_path / "nowhere"
    paths["good"] = good  # a failed load leaves an engine that can still load
    (answers,) = run_ranks(_load_all, 1, source, paths)
    assert answers.pop("good") == "loaded"
    for name, answer in answers.items():
        assert answer.startswith("CheckpointError: could not read the checkpoint"), (
            name,
            answer,
        )
        assert str(paths[name]) in answer
        assert "\n" not in answer


def _save_where_nothing_can_be(rank, folder, path):
    try:
        Session(rank, folder, "one").backend.save_checkpoint(path)
    except CheckpointError as error:
        return str(error)
    return "saved"


def test_saving_without_a_folder_fails(source, tmp_path):
    path = tmp_path / "nowhere"
    (answer,) = run_ranks(_save_where_nothing_can_be, 1, source, path)
    assert f"could not write the checkpoint in {path}: FileNotFoundError" in answer
