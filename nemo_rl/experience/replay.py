"""Replay: what is sampled and not trained on yet, as one file of a checkpoint.

Only tensors and plain values are written, so it is read with ``weights_only``. Prompts
are named by their index in the data set and read again from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.experience.tail import Group, Response
from nemo_rl.utils.exceptions import CheckpointError

FILE = "replay.pt"
_FORMAT = 1
_OF_PROMPTS = ("prompt", "messages", "answer", "task_name", "row")
"""Columns that the data set gives again."""


@dataclass(eq=False)
class Ready:
    """A batch that is sampled and scored.

    Attributes:
        number: which, from 0.
        rollouts: a rollout batch with ``idx`` and ``token_versions``.
        metrics: over it.
        data: the data's state after its prompts were drawn.
        carried: groups that go over to the next batch.
    """

    number: int
    rollouts: BatchedDataDict
    metrics: dict[str, float]
    data: dict[str, Any]
    carried: list[Group] = field(default_factory=list)

    def fits(self, data: dict[str, Any], rows: int) -> bool:
        """Whether it is of the prompts that were drawn last, and of so many rows."""
        return self.data == data and self.rollouts.size == rows


def write_replay(
    folder: Path,
    ready: list[Ready],
    carried: list[Group],
    lengths: dict[int, list[float]],
) -> list[int]:
    """Write what is sampled.

    Args:
        folder: of the checkpoint.
        ready: finished batches that no step has trained on.
        carried: groups carried out of the last batch that one has.
        lengths: a ``LengthBook``'s state.

    Returns:
        Numbers of batches with columns that are no plain data: they are not written,
        and sampled again after a resume.
    """
    kept = [batch for batch in ready if _plain(_columns(batch.rollouts))]
    state = {
        "format": _FORMAT,
        "ready": [
            {
                "number": batch.number,
                "rollouts": _columns(batch.rollouts),
                "metrics": batch.metrics,
                "data": batch.data,
                "carried": [_packed(group) for group in batch.carried],
            }
            for batch in kept
        ],
        "carried": [_packed(group) for group in carried],
        "lengths": lengths,
    }
    torch.save(state, folder / FILE)
    return [batch.number for batch in ready if batch not in kept]


def read_replay(
    folder: Path, data: Any
) -> tuple[list[Ready], list[Group], dict[int, list[float]]]:
    """Read what ``write_replay`` wrote; nothing where there is no such file.

    Args:
        folder: of a checkpoint.
        data: has ``rows(indices)``.

    Raises:
        CheckpointError: the file is damaged or of another version.
    """
    path = folder / FILE
    if not path.exists():
        return [], [], {}
    try:
        state = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise CheckpointError(
            f"the sampled responses {path} cannot be read: {error}"
        ) from error
    if state.get("format") != _FORMAT:
        raise CheckpointError(
            f"the sampled responses {path} have format {state.get('format')!r}, this "
            f"version reads {_FORMAT}. Remove the file to sample them again."
        )
    ready = [
        Ready(
            entry["number"],
            _with_prompts(entry["rollouts"], data),
            entry["metrics"],
            entry["data"],
            [_unpacked(group, data) for group in entry["carried"]],
        )
        for entry in state["ready"]
    ]
    return ready, [_unpacked(g, data) for g in state["carried"]], state["lengths"]


def _columns(rollouts: BatchedDataDict) -> dict[str, Any]:
    return {key: value for key, value in rollouts.items() if key not in _OF_PROMPTS}


def _with_prompts(columns: dict[str, Any], data: Any) -> BatchedDataDict:
    prompts = data.rows(columns["idx"].tolist())
    again = {key: prompts[key] for key in _OF_PROMPTS if key in prompts}
    return BatchedDataDict({**again, **columns})


def _packed(group: Group) -> dict[str, Any]:
    rows = [dict(vars(response)) for response in group.responses]
    return {"idx": int(group.prompt["idx"][0]), "responses": rows}


def _unpacked(packed: dict[str, Any], data: Any) -> Group:
    responses = [Response(**row) for row in packed["responses"]]
    return Group(data.rows([packed["idx"]]), responses)


def _plain(value: Any) -> bool:
    """Whether a value is a tensor or made of what JSON knows."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(v) for key, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str, torch.Tensor)
