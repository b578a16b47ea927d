"""Wording of problems that BaseConfig's own tests do not reach."""

from typing import Literal

import pytest
from pydantic import field_validator, model_validator

from nemo_rl.config.base import BaseConfig
from nemo_rl.config.messages import describe_unknown, section_in
from nemo_rl.utils.exceptions import ConfigurationError


class Part(BaseConfig):
    kind: Literal["alpha", "beta"] = "alpha"
    """Which."""
    low: int = 0
    """Lower end."""
    high: int = 1
    """Upper end."""

    @field_validator("low")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("is odd.")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> "Part":
        if self.low > self.high:
            raise ValueError(f"low={self.low} exceeds high={self.high}.")
        return self


class Whole(BaseConfig):
    part: Part
    """The part."""


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"kind": "alpa"},
            "part.kind='alpa' is not one of alpha, beta. Did you mean a",
        ),
        ({"low": 3}, "part.low=3 is odd."),
        ({"low": 4}, "part: low=4 exceeds high=1."),
        (3, "part=3: expected a valid dictionary or instance of Part."),
    ],
)
def test_wording(part: object, message: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        Whole.from_mapping({"part": part})
    assert str(error.value).startswith(message)


def test_describe_unknown_with_prefix() -> None:
    assert describe_unknown(Part, "hihg", "a.") == (
        "a.hihg is not a field. Did you mean high?"
    )


@pytest.mark.parametrize(
    "annotation", [Part, Part | None, list[Part], list[Part] | None]
)
def test_section_in(annotation: object) -> None:
    assert section_in(annotation) is Part


def test_no_section_in_scalars() -> None:
    assert section_in(int | None) is None
    assert section_in(dict[str, int]) is None
