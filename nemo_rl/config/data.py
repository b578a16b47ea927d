"""The data section: which rows are trained and validated on; knows no dataset."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from nemo_rl.config.base import BaseConfig

_OF_A_DATASET = {
    "env_name",
    "processor",
    "prompt_file",
    "split_validation_size",
    "system_prompt_file",
}
"""Keys of data.train that describe the task, not the rows."""


class MixtureSourceConfig(BaseConfig):
    """data.mixture[i]: one of the datasets that are trained on together."""

    dataset_name: str
    """Registered name, hub name, folder or file."""
    dataset_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of that dataset, such as split."""
    weight: float | None = None
    """Its share of an epoch, relative to the others; None everywhere: its rows."""
    task_name: str | None = None
    """Environment that grades its rows; None keeps what the rows say."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Field that is wanted -> field of the row that holds it: {prompt: question}."""

    @field_validator("weight")
    @classmethod
    def _positive(cls, weight: float | None) -> float | None:
        if weight is not None and not (weight > 0 and math.isfinite(weight)):
            raise ValueError(
                "is no weight: expected a number above 0. To leave the dataset out, "
                "remove its entry."
            )
        return weight


class DataConfig(BaseConfig):
    """Which rows are trained and validated on, and how they are read."""

    dataset_name: str | None = None
    """Registered name, hub name, folder or file; None: given to fit()."""
    dataset_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of that dataset, such as split."""
    mixture: list[MixtureSourceConfig] = Field(default_factory=list)
    """Several datasets instead of dataset_name, each with its weight."""
    val_dataset_name: str | None = None
    """Dataset to validate on; None validates on nothing unless given to fit()."""
    val_dataset_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the validation dataset."""
    split_validation_size: float | None = Field(None, ge=0)
    """Part of the training rows to validate on: below 1 a fraction, else a number."""
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

    @model_validator(mode="after")
    def _one_source_of_rows(self) -> DataConfig:
        weighted = [source.weight is not None for source in self.mixture]
        if self.mixture and self.dataset_name is not None:
            raise ValueError(
                f"mixture replaces dataset_name={self.dataset_name!r}: give one of the "
                "two, or name that dataset in an entry of mixture."
            )
        if any(weighted) and not all(weighted):
            raise ValueError(
                f"mixture[{weighted.index(False)}] has no weight and others have one: "
                "give every entry a weight, or none."
            )
        for number, source in enumerate(self.mixture):
            for earlier, other in enumerate(self.mixture[:number]):
                if (source.dataset_name, source.dataset_kwargs) == (
                    other.dataset_name,
                    other.dataset_kwargs,
                ):
                    raise ValueError(
                        f"mixture[{number}] is mixture[{earlier}] "
                        f"({source.dataset_name!r}) again: give one of them the sum of "
                        "the weights."
                    )
        return self

    @model_validator(mode="after")
    def _one_source_of_validation(self) -> DataConfig:
        size = self.split_validation_size
        if size and self.val_dataset_name is not None:
            raise ValueError(
                f"split_validation_size={size:g} takes the validation rows from the "
                f"training rows and val_dataset_name={self.val_dataset_name!r} from "
                "elsewhere: give one of the two."
            )
        if size is not None and size > 1 and size != int(size):
            raise ValueError(
                f"split_validation_size={size:g} is neither a fraction below 1 nor a "
                "whole number of rows."
            )
        return self
