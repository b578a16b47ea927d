"""Optimizer state read under another layout than it was written in.

megatron-core keeps the moments in tensors named by their parameters, which any layout
can read. Beside them it keeps one small record per optimizer, written by rank 0 alone,
and there is one optimizer for all parameters or two, one of them for experts that are
divided. So the record of a checkpoint need not be the record that this rank wants: the
other number of optimizers, or none for experts where rank 0 had none. A rank therefore
takes its own record and, from the checkpoint, what alone is not its configuration: the
number of updates.
"""

from __future__ import annotations

from typing import Any

from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedBase,
)
from torch import Tensor

from nemo_rl.utils.exceptions import CheckpointError

_STORED = object()
_STEPS = ("step", "common_step")


def own_record(sharded: Any) -> Any:
    """The small part of a rank's sharded state, with the places of its tensors.

    Args:
        sharded: an optimizer's ``sharded_state_dict``, before it is loaded.
    """
    if isinstance(sharded, ShardedBase | LocalNonpersistentObject):
        return _STORED
    if isinstance(sharded, dict):
        return {key: own_record(value) for key, value in sharded.items()}
    if isinstance(sharded, list):
        return [own_record(value) for value in sharded]
    return sharded


def as_own(record: Any, loaded: Any) -> Any:
    """What was loaded, in the form that this rank's optimizer reads.

    Args:
        record: see ``own_record``.
        loaded: the state of the checkpoint, its tensors in this rank's layout.

    Raises:
        CheckpointError: its optimizers have made different numbers of updates.
    """
    steps = {float(step) for step in _steps(loaded)}
    if len(steps) > 1:
        raise CheckpointError(f"its optimizers have made {sorted(steps)} updates")
    state = _filled(record, loaded)
    _set_steps(state, int(steps.pop()) if steps else 0)
    return state


def _steps(tree: Any) -> list[Any]:
    if isinstance(tree, list):
        return [step for value in tree for step in _steps(value)]
    if not isinstance(tree, dict):
        return []
    found = [tree[key] for key in _STEPS if _is_number(tree.get(key))]
    return found + [step for value in tree.values() for step in _steps(value)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (
        isinstance(value, Tensor) and value.numel() == 1
    )


def _filled(record: Any, loaded: Any) -> Any:
    if record is _STORED:
        return loaded
    if isinstance(record, dict):
        inner = loaded if isinstance(loaded, dict) else {}
        return {key: _filled(value, inner.get(key)) for key, value in record.items()}
    if isinstance(record, list):
        inner = loaded if isinstance(loaded, list) else []
        padded = [*inner, *[None] * len(record)]
        return [_filled(v, w) for v, w in zip(record, padded, strict=False)]
    return record


def _set_steps(state: Any, step: int) -> None:
    if isinstance(state, list):
        for value in state:
            _set_steps(value, step)
    elif isinstance(state, dict):
        for group in state.get("param_groups", ()):
            group.pop("step", None)  # there is none before the first update
            group.update({"step": step} if step else {})
        for key, value in state.items():
            if key == "common_step":
                state[key] = step
            else:
                _set_steps(value, step)
