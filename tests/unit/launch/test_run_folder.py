"""Tests of nemo_rl.launch.run_folder."""

from __future__ import annotations

from nemo_rl.launch.run_folder import read_end, summary, tail


def test_an_empty_folder_tells_nothing(tmp_path):
    assert read_end(tmp_path) is None
    assert summary(tmp_path) == {
        "exit_code": None,
        "step": None,
        "checkpoint": None,
        "metrics": {},
        "run_dir": str(tmp_path),
    }
    assert tail(tmp_path) == ""


def test_the_last_steps_metrics(tmp_path):
    (tmp_path / "logs").mkdir()
    lines = ['"train/loss": 2}', '"step": 2, "train/loss": 1, "time": "t"}']
    lines[0] = '{"step": 1, ' + lines[0]
    lines[1] = "{" + lines[1]
    lines.append('{"step": 2, "time": "t", "validation/accuracy": 0.5}')
    (tmp_path / "logs" / "metrics.jsonl").write_text("\n".join([*lines, '{"ste']))
    (tmp_path / "EXIT_CODE").write_text("75 42_1\n")
    (tmp_path / "PROGRESS").write_text("/runs/step_2\n")
    assert summary(tmp_path) == {
        "exit_code": 75,
        "step": 2,
        "checkpoint": "/runs/step_2",
        "metrics": {"train/loss": 1, "validation/accuracy": 0.5},
        "run_dir": str(tmp_path),
    }
    assert read_end(tmp_path) == (75, "42_1")


def test_an_absolute_log_dir_is_found(tmp_path):
    (tmp_path / "resolved.yaml").write_text(f"logger: {{log_dir: {tmp_path}/far}}\n")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "metrics.jsonl").write_text('{"step": 7, "a": 1}\n')
    assert summary(tmp_path)["step"] == 7


def test_tail(tmp_path):
    (tmp_path / "job.log").write_text("".join(f"line {i}\n" for i in range(9000)))
    assert tail(tmp_path, 2) == "line 8998\nline 8999"
