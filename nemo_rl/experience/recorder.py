"""RolloutRecorder: every completion as one line of JSONL, for people and for replay.

Knows nothing of trainers; `rollout_rows` reads the fields of a rollout batch.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_rl.utils.files import prepare_jsonl

log = logging.getLogger(__name__)

# Enough to compare log-probabilities at float32; longer ones double the file.
_DECIMALS = 6


class RolloutRecorder:
    """Appends completions to a JSONL file.

    A row: {"step": 3, "split": "train", "group": 0, "prompt": "5 + 2 =",
    "response": "7", "reward": 1.0, "truncated": false, "prompt_ids": [..],
    "response_ids": [..], "logprobs": [..]}. Where there were several turns also
    "num_turns": 2, "conversation": [{"role": "assistant", "content": "up"}, ..] and
    "token_mask": [..], 1 where a token of response_ids was sampled.

    Args:
        path: the file.
        resume_step: the last step of the resumed checkpoint; later rows are removed.
            None or 0 for a fresh run: rows of an earlier one are moved aside.
        enabled: False makes `record` do nothing (`logger.save_rollouts`).
    """

    def __init__(
        self, path: Path | str, resume_step: int | None = None, *, enabled: bool = True
    ) -> None:
        """Cut or set aside old rows and open the file to append."""
        self.path = Path(path)
        self._file = None
        if enabled:
            prepare_jsonl(self.path, resume_step)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def record(
        self, step: int, rows: Sequence[Mapping[str, Any]], *, split: str = "train"
    ) -> None:
        """Append one line per completion and hand them to the operating system.

        A disk that is full ends the record with a warning, not the training.

        Args:
            step: the training step they belong to, or of the validation.
            rows: mappings of JSON values, tensors, or numpy arrays.
            split: "train" or "val".
        """
        if self._file is None:
            return
        lines = [
            json.dumps({"step": step, "split": split, **_plain(row)}, default=str)
            for row in rows
        ]
        try:
            self._file.write("".join(line + "\n" for line in lines))
            self._file.flush()
        except OSError as error:
            log.warning("%s cannot be written and ends here: %s", self.path, error)
            self.close()

    def close(self) -> None:
        """Close the file; later rows are not recorded."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                log.debug("closing %s: %s", self.path, error)


def rollout_rows(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per completion of a rollout batch.

    Args:
        batch: prompt and response [B] lists; rewards [B]; optional: answer [B] list,
            truncated [B], group [B], and, for the token fields, input_ids [B,S],
            prompt_lengths [B], input_lengths [B], generation_logprobs [B,S]. Rows with
        num_turns [B] above 1 also read conversation [B] lists and token_mask [B,S].

    Returns:
        B mappings of JSON values, without padding.
    """
    columns = {
        "group": "group",
        "prompt": "prompt",
        "response": "response",
        "answer": "answer",
        "rewards": "reward",
        "truncated": "truncated",
    }
    present = {name: key for name, key in columns.items() if name in batch}
    values = {name: _listed(batch[name]) for name in present}
    rows = [
        {key: values[name][index] for name, key in present.items()}
        for index in range(len(values["response"]))
    ]
    turns = _listed(batch.get("num_turns")) or [1] * len(rows)
    for index, row in enumerate(rows):
        if turns[index] > 1:
            row["num_turns"] = turns[index]
            row["conversation"] = batch["conversation"][index]
    if "input_ids" not in batch:
        return rows
    ids = _listed(batch["input_ids"])
    starts, ends = _listed(batch["prompt_lengths"]), _listed(batch["input_lengths"])
    logprobs = _listed(batch.get("generation_logprobs"))
    for index, row in enumerate(rows):
        start, end = starts[index], ends[index]
        row["prompt_ids"] = ids[index][:start]
        row["response_ids"] = ids[index][start:end]
        if logprobs is not None:
            row["logprobs"] = logprobs[index][start:end]
        if turns[index] > 1:
            mask = _listed(batch["token_mask"][index])[start:end]
            row["token_mask"] = [int(value) for value in mask]
    return rows


def _listed(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else values


def _plain(value: Any) -> Any:
    """JSON values: tensors become lists, floats are rounded, NaN becomes null."""
    value = _listed(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, _DECIMALS) if math.isfinite(value) else None
    return value
