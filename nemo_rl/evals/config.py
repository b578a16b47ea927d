"""The configuration of an evaluation: a recipe's sections and one of its own.

Torch-free; knows no model's shape.
"""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from nemo_rl.config.base import BaseConfig
from nemo_rl.config.master import MasterConfig

_OF_TRAINING = ("checkpointing", "logger")


class EvalConfig(BaseConfig):
    """The eval section: how many answers, what counts as right, how sure one is."""

    num_samples: int = Field(1, ge=1)
    """Answers per prompt (n)."""
    k: list[int] | None = None
    """The k of pass@k and cons@k, each at most num_samples; None: 1 and num_samples."""
    greedy: bool = False
    """Take the likeliest token; answers are then all alike, so num_samples is 1."""
    max_turns: int = Field(1, ge=1)
    """Turns between model and environment, at most."""
    max_prompts: int | None = Field(None, ge=1)
    """At most the first this many rows; None: all."""
    batch_size: int = Field(64, ge=1)
    """Prompts that are answered together."""
    threshold: float = 1.0
    """Lowest reward of a right answer."""
    answer_pattern: str | None = None
    """Regular expression of the answer that votes in cons@k: its last match's first
    group. None: what the environment reads out, else the whole response."""
    confidence: float = Field(0.95, gt=0, lt=1)
    """Probability that an interval holds the true value."""
    seed: int = Field(42, ge=0)
    """Seed of sampling and of the bootstrap."""

    @field_validator("answer_pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{value!r} is no regular expression: {error}.") from (
                    error
                )
        return value

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if self.greedy and self.num_samples != 1:
            raise ValueError(
                f"greedy answers are all alike, but num_samples={self.num_samples}: "
                "set it to 1, or greedy to false."
            )
        wrong = [k for k in self.k or () if not 1 <= k <= self.num_samples]
        if wrong or self.k == []:
            raise ValueError(
                f"k={self.k} must name numbers from 1 to num_samples="
                f"{self.num_samples}."
            )
        return self

    @property
    def ks(self) -> list[int]:
        """The k that are reported, ascending."""
        return sorted(set(self.k or (1, self.num_samples)))


class EvalMasterConfig(MasterConfig):
    """A whole evaluation: policy, data, env, cluster and eval sections.

    Example:
        >>> config = EvalMasterConfig.from_mapping(
        ...     {"policy": {"model_name": "my-model"}, "eval": {"num_samples": 4}}
        ... )
        >>> config.eval.ks
        [1, 4]
    """

    eval: EvalConfig = Field(default_factory=EvalConfig)
    """How many answers, what counts as right, how sure one is."""

    @property
    def algorithm_section(self) -> EvalConfig:
        """The eval section, under the name that every algorithm's has."""
        return self.eval

    def to_dict(self) -> dict[str, Any]:
        """As of any recipe, without the sections that only training reads."""
        whole = super().to_dict()
        return {name: whole[name] for name in whole if name not in _OF_TRAINING}

    @classmethod
    def adapt(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Refuse the sections that only training reads."""
        for name in _OF_TRAINING:
            if name in values:
                raise ValueError(
                    f"{name} is a section of training; an evaluation writes what it "
                    "finds into its output folder."
                )
        return values
