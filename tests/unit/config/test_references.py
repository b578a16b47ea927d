"""References between keys."""

import pytest

from nemo_rl.config.references import resolve_references
from nemo_rl.utils.exceptions import ConfigurationError


def test_types_and_text() -> None:
    resolved = resolve_references(
        {
            "a": {"b": 2, "c": "${a.b}", "d": "x${a.b}y${e}", "f": ["${a.c}"]},
            "e": "${a}",
            "g": None,
            "h": "${g}",
        }
        | {"e": "z"}
    )
    assert resolved == {
        "a": {"b": 2, "c": 2, "d": "x2yz", "f": [2]},
        "e": "z",
        "g": None,
        "h": None,
    }


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("${mul:${n},${m}}", 12),
        ("${mul:2, ${n}}", 6),
        ("${mul:0.5,${n}}", 1.5),
        ("${add:${n},1}", 4),
        ("${sub:${m},${n}}", 1),
        ("${div:${m},2}", 2),
        ("${max:${m},${n}}", 4),
        ("${min:${mul:${m},2},${n}}", 3),
    ],
)
def test_functions(expression: str, value: float) -> None:
    assert resolve_references({"n": 3, "m": 4, "x": expression})["x"] == value


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"a": {"b": "${c.d}"}}, r"a.b refers to \$\{c.d\}, which the recipe does not"),
        ({"a": "${b}", "b": "${a}"}, "references go in a circle: b -> a -> b"),
        ({"a": "${oc.env:SECRET}"}, r"\$\{oc.env:...\} is not a function.*There are"),
        ({"a": "${mul:x,2}"}, r"\$\{mul:x,2\} cannot be computed"),
        ({"a": "${div:1,0}"}, "cannot be computed"),
    ],
)
def test_references_that_cannot_be(mapping: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        resolve_references(mapping)
