"""What counts as rows; the sources themselves are tried in test_module."""

from nemo_rl.data.sources import describe_row, fingerprint, open_rows


class Described(list):
    def describe_row(self, idx):
        return f"file, line {idx + 5}"


def test_rows_are_described_by_their_source():
    assert describe_row([1], 0) == "row 0"
    assert describe_row(Described([1]), 0) == "file, line 5"


def test_the_recipes_arguments_belong_to_the_recipes_dataset():
    kwargs = {"num_validation": 5}
    assert len(open_rows(None, "arithmetic", kwargs, None)) == 194
    assert len(open_rows("arithmetic", "arithmetic", kwargs, None)) == 194
    assert len(open_rows("arithmetic", None, kwargs, None)) == 151


def test_fingerprints_see_count_content_and_order():
    rows = [{"a": 1}, {"a": 2}]
    prints = {fingerprint(r) for r in (rows, rows[:1], rows[::-1], [*rows, rows[0]])}
    assert len(prints) == 4 and fingerprint(list(rows)) == fingerprint(rows)
    assert fingerprint(list(range(10_000))) != fingerprint(list(range(9_999)))
