"""Fields: right ones pass; tests/unit/data/test_malformed.py has the wrong ones."""

import pytest

from nemo_rl.data.datasets.fields import field, shown, text, turns, whole_number
from nemo_rl.utils.exceptions import DataError


def test_right_fields_pass():
    row = {"a": "x", "m": [{"role": "user", "content": "", "tools": None}], "n": None}
    assert (field(row, "n", "row 0"), text(row, "a", "row 0")) == (None, "x")
    assert turns(row, "m", "row 0") == [{"role": "user", "content": ""}]
    assert [whole_number(v, "a", "row 0", lowest=-1, highest=2) for v in (-1, 2.0)] == [
        -1,
        2,
    ]


def test_a_missing_field_names_the_closest():
    with pytest.raises(DataError, match="row 3: has no field 'promt'.*mean prompt"):
        field({"prompt": "x"}, "promt", "row 3")


def test_long_values_are_cut():
    assert shown("x" * 500) == "'" + "x" * 79 + "..."
