"""Views: the rows they show, and that each still says where its row stands."""

import pytest

from nemo_rl.data.datasets.views import (
    ChosenRows,
    JoinedRows,
    NamedRows,
    RewrittenRows,
    column,
    describe_row,
)
from nemo_rl.utils.exceptions import DataError

ROWS = [{"n": n} for n in range(5)]


class Lines(list):
    default_environment = "exact_match"

    def describe_row(self, idx):
        return f"a.jsonl, line {idx + 1}"


def test_a_place_survives_every_view():
    chosen = ChosenRows(Lines(ROWS), [4, 1, 1])
    assert [row["n"] for row in chosen] == [4, 1, 1] and len(chosen) == 3
    rewritten = RewrittenRows(
        chosen, lambda row, where: {"n": row["n"], "where": where}, prefix="mine: "
    )
    assert rewritten[0] == {"n": 4, "where": "mine: a.jsonl, line 5"}
    joined = JoinedRows([ROWS[:2], rewritten])
    assert describe_row(joined, 3) == "mine: a.jsonl, line 2"
    assert describe_row(joined, 1) == "row 1"
    assert rewritten.default_environment == "exact_match"
    assert ChosenRows(ROWS, [0]).default_environment is None


def test_joined_rows_and_columns():
    joined = JoinedRows([ROWS[:2], ROWS[2:2], ROWS[2:]])
    assert [row["n"] for row in joined] == column(joined, "n") == list(range(5))
    assert column(joined, "absent") == [None] * 5
    with pytest.raises(IndexError):
        joined[5]


def test_a_table_of_the_library(datasets):
    named = NamedRows(datasets.Dataset.from_list(ROWS), "a.parquet")
    assert (len(named), named[3], column(named, "n")) == (5, {"n": 3}, [0, 1, 2, 3, 4])
    assert describe_row(named, 3) == "a.parquet, row 3"


def test_what_is_no_mapping_is_not_rewritten():
    with pytest.raises(
        DataError, match="line 2: expected a mapping of fields, got int"
    ):
        RewrittenRows(Lines([{}, 3]), lambda row, where: {})[1]
