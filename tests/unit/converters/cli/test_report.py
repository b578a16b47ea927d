"""What a command shows while it works and when it is done."""

from __future__ import annotations

from nemo_rl.converters.cli.report import memory, peak, progress, resident


def test_one_line_at_the_end_where_there_is_no_terminal(capsys):
    with progress(3_000_000) as advance:
        advance(1_000_000)
        advance(2_000_000)
    out = capsys.readouterr().out
    assert out.startswith("3 MB in") and out.rstrip().endswith("MB/s")


def test_what_was_done_earlier_is_not_counted_in_the_rate(capsys):
    with progress(3_000_000) as advance:
        advance(2_000_000, earlier=True)
        advance(1_000_000)
    assert capsys.readouterr().out.startswith("1 MB in")


def test_memory_is_what_this_process_has_and_had():
    assert 0 < resident() <= peak()
    assert "peak memory" in memory() and memory(1 << 30).endswith("(bound 1.0 GiB)")
