"""The wording for unknown names."""

import pytest

from nemo_rl.utils.suggest import did_you_mean


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tensor_paralel", " Did you mean tensor_parallel?"),
        ("SEED", " Did you mean seed?"),
        ("quite_another", ""),
    ],
)
def test_suggests_only_what_is_close(name: str, expected: str) -> None:
    assert did_you_mean(name, ["tensor_parallel", "seed"]) == expected


def test_no_choices() -> None:
    assert did_you_mean("x", []) == ""
