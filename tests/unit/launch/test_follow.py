"""Tests of nemo_rl.launch.follow: a log that grows while it is printed."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

from nemo_rl.launch import follow as module
from nemo_rl.launch.follow import appended, follow


def test_each_byte_is_printed_once_and_the_last_ones_too(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "POLL_S", 0)
    log: Path = tmp_path / "job.log"
    answers = iter([False, False, False, True])

    def done():
        answer = next(answers)
        with log.open("a") as file:  # The job writes while it is asked about.
            file.write("ü\n")
        return answer

    job = SimpleNamespace(
        paths=SimpleNamespace(stdout=log),
        log_start=0,
        done=done,
        exit_code=lambda: 75,
    )
    out = io.StringIO()
    assert follow(job, out) == 75
    assert out.getvalue() == "ü\n" * 4


def test_following_waits_for_the_file_survives_truncation_and_ends(tmp_path):
    log = tmp_path / "job.log"
    script = iter(
        [
            lambda: log.write_text("one\n"),
            lambda: log.open("a").write("two\n"),
            lambda: log.write_text("3\n"),
        ]
    )

    def sleep(_seconds):
        next(script, lambda: None)()

    ended = iter([False, False, True])
    texts = list(appended(log, lambda: next(ended, True), sleep=sleep))
    assert "".join(texts) == "one\ntwo\n3\n"


def test_a_letter_may_arrive_in_two_pieces(tmp_path):
    log = tmp_path / "job.log"
    log.write_bytes("ü".encode()[:1])

    def sleep(_seconds):
        log.write_bytes("ü".encode())

    ended = iter([False, True])
    assert "".join(appended(log, lambda: next(ended, True), sleep=sleep)) == "ü"
