"""The env section: what scores a response; knows no environment."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from nemo_rl.config.base import BaseConfig


class MathEnvConfig(BaseConfig):
    """env.math: grading of mathematical answers."""

    num_workers: int = Field(8, ge=1)
    """Processes that grade."""
    math_verify_impl: str | None = None
    """Accepted; there is one implementation."""
    stop_strings: list[str] | None = None
    """Accepted; policy.generation.stop_strings decides."""


class EnvConfig(BaseConfig):
    """What scores a response."""

    name: str | None = None
    """Environment; None means the one that belongs to the dataset."""
    reward_fn: str | None = None
    """Your own: "module:function", looked for beside the recipe first."""
    batched: bool | None = None
    """The function takes lists; None decides from its signature."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the named environment, or keywords of reward_fn."""
    math: MathEnvConfig | None = None
    """Grading of mathematical answers; chooses it where name is not given."""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.name is not None and self.reward_fn is not None:
            raise ValueError(
                f"name={self.name!r} and reward_fn={self.reward_fn!r} both score "
                "responses; give one of them."
            )
        if self.reward_fn is not None and not _names_an_object(self.reward_fn):
            raise ValueError(
                f"reward_fn={self.reward_fn!r} does not name a function. Expected "
                "'module:function', for example 'rewards:score'."
            )
        return self


def _names_an_object(path: str) -> bool:
    module, separator, name = path.rpartition(":" if ":" in path else ".")
    return bool(module and separator and name)
