"""The command line as a whole: commands, help, exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nemo_rl.converters.cli import parser as cli
from nemo_rl.launch.__main__ import main as nemo_rl


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    assert f"python -m nemo_rl.converters {command}" in capsys.readouterr().out


def test_nemo_rl_convert_is_the_same_command_line(capsys, tmp_path):
    with pytest.raises(SystemExit, match="0"):
        nemo_rl(["convert", "--help"])
    assert "nemo-rl convert hf-to-megatron MODEL OUT" in capsys.readouterr().out
    assert nemo_rl(["convert", "inspect", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("nemo_rl: ")


def test_help_needs_no_torch():
    code = (
        "import sys; from nemo_rl.converters.cli.parser import parse\n"
        "parse(['inspect', 'x']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ctrl_c_is_one_sentence(monkeypatch, capsys):
    def stop(options):
        raise KeyboardInterrupt("how to go on")

    from nemo_rl.converters.cli import inspect as inspection

    command = cli.Command("", inspection._arguments, stop)
    monkeypatch.setattr(inspection, "INSPECT", command)
    assert cli.main(["inspect", "x"]) == 130
    assert capsys.readouterr().err == "nemo_rl: stopped; how to go on\n"
