"""What is sampled and not trained on comes back from a checkpoint as it was."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.experience.replay import FILE, Ready, read_replay, write_replay
from nemo_rl.experience.tail import Group, Response
from nemo_rl.utils.exceptions import CheckpointError


class Data:
    """Rows with something that no file could hold."""

    def rows(self, indices):
        return BatchedDataDict(
            {
                "input_ids": torch.tensor([[i, i] for i in indices]),
                "input_lengths": torch.tensor([2 for _ in indices]),
                "idx": torch.tensor(indices),
                "prompt": [f"p{i}" for i in indices],
                "row": [{"check": len, "n": i} for i in indices],
            }
        )


def batch(number: int, **columns) -> Ready:
    prompts = Data().rows([number, 7])
    rollouts = BatchedDataDict(
        {
            **prompts,
            "input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]),
            "generation_logprobs": torch.rand(2, 3),
            "conversation": [[{"role": "assistant", "content": "x"}], []],
            **columns,
        }
    )
    group = Group(Data().rows([9]), [Response(5, [1], [-0.5], [3]), Response(6)])
    state = {"epoch": 1, "position": number, "fingerprint": "f"}
    return Ready(number, rollouts, {"reward": 0.5}, state, [group])


def test_everything_comes_back(tmp_path) -> None:
    one, two = batch(3), batch(4)
    assert write_replay(tmp_path, [one, two], one.carried, {7: [2, 9.0]}) == []
    ready, carried, lengths = read_replay(tmp_path, Data())
    assert [b.number for b in ready] == [3, 4]
    for saved, found in zip((one, two), ready, strict=True):
        assert set(saved.rollouts) == set(found.rollouts)
        for key, column in saved.rollouts.items():
            same = column == found.rollouts[key]
            assert same if isinstance(column, list) else same.all(), key
        assert (saved.metrics, saved.data) == (found.metrics, found.data)
    assert [r.tokens for r in carried[0].responses] == [[1], []]
    assert carried[0].responses == one.carried[0].responses
    assert carried[0].prompt["row"][0] == {"check": len, "n": 9}
    assert lengths == {7: [2, 9.0]}


def test_what_is_no_plain_data_is_left_out_and_said(tmp_path) -> None:
    odd = batch(4, mine=[object(), object()])
    assert write_replay(tmp_path, [batch(3), odd], [], {}) == [4]
    assert [b.number for b in read_replay(tmp_path, Data())[0]] == [3]


def test_a_checkpoint_without_it_has_nothing(tmp_path) -> None:
    assert read_replay(tmp_path, Data()) == ([], [], {})


def test_a_damaged_or_foreign_file_is_refused(tmp_path) -> None:
    (tmp_path / FILE).write_bytes(b"no such thing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_replay(tmp_path, Data())
    torch.save({"format": 99}, tmp_path / FILE)
    with pytest.raises(CheckpointError, match="format 99"):
        read_replay(tmp_path, Data())
