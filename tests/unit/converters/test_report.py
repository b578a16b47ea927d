"""What a command shows while it works and when it is done."""

from __future__ import annotations

from nemo_rl.converters.report import memory, progress


def test_one_line_at_the_end_where_there_is_no_terminal(capsys):
    with progress(3_000_000) as advance:
        advance(1_000_000)
        advance(2_000_000)
    out = capsys.readouterr().out
    assert out.startswith("3 MB in") and out.rstrip().endswith("MB/s")


def test_memory_is_in_mebibytes():
    assert "peak memory" in memory() and "MiB" in memory()
