"""The data section: which rows are trained and validated on; knows no dataset."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from nemo_rl.config.base import BaseConfig

_OF_A_DATASET = {"prompt_file", "system_prompt_file", "processor", "env_name"}
"""Keys of data.train that describe the task, not the rows."""


class DataConfig(BaseConfig):
    """Which rows are trained and validated on, and how they are read."""

    dataset_name: str | None = None
    """Registered name, hub name, folder or JSONL file; None: given to fit()."""
    dataset_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of that dataset, such as split."""
    val_dataset_name: str | None = None
    """Dataset to validate on; None validates on nothing unless given to fit()."""
    val_dataset_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the validation dataset."""
    prompt_key: str = "prompt"
    """Field of a row that holds the prompt as text."""
    messages_key: str = "messages"
    """Field of a row that holds the conversation."""
    answer_key: str = "answer"
    """Field of a row that holds the expected answer."""
    response_key: str = "response"
    """Field of a row that holds the answer to learn, beside the prompt."""
    chosen_key: str = "chosen"
    """Field of a row that holds the better answer."""
    rejected_key: str = "rejected"
    """Field of a row that holds the worse answer."""
    system_prompt: str | None = None
    """System message put before every prompt that has none."""
    system_prompt_file: str | None = None
    """File that holds the system prompt; give one of the two."""
    prompt_file: str | None = None
    """File with a template in which {} stands for the row's prompt."""
    shuffle: bool = True
    """Draw a new order of the rows in every epoch."""
    seed: int | None = None
    """Seed of that order; None means the algorithm's seed."""
    num_workers: int = Field(0, ge=0)
    """Accepted; rows are prepared in the driver, well within a training step."""
    max_input_seq_length: int | None = Field(None, ge=1)
    """Longest prompt in tokens; None leaves room for max_new_tokens, or half."""
    overlong: Literal["error", "truncate", "skip"] = "error"
    """What becomes of conversations that are too long: an error, their beginning
    (truncate), or no part in the loss (skip)."""
    processor: str | None = None
    """Accepted; every dataset prepares its own rows."""

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, values: Any) -> Any:
        """Accept data.{default,train,validation}, as newer NeMo-RL recipes write."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        default = values.pop("default", None) or {}
        for key, prefix in (("train", ""), ("validation", "val_")):
            section = values.pop(key, None)
            if not isinstance(section, dict):
                continue
            rows = {k: v for k, v in section.items() if k not in _OF_A_DATASET}
            values.setdefault(f"{prefix}dataset_name", rows.pop("dataset_name", None))
            values.setdefault(f"{prefix}dataset_kwargs", rows)
            if key == "train":
                default = {**default, **section}
        for key in _OF_A_DATASET - {"env_name"}:
            if key in default:
                values.setdefault(key, default[key])
        return values

    @model_validator(mode="after")
    def _one_system_prompt(self) -> DataConfig:
        if self.system_prompt is not None and self.system_prompt_file is not None:
            raise ValueError("give system_prompt or system_prompt_file, not both.")
        return self
