"""Tests of nemo_rl.launch.site."""

from __future__ import annotations

import pytest

from nemo_rl.launch.site import default_name, load_site, parse, root_dir
from nemo_rl.utils.exceptions import LaunchError


def test_parse_reads_plain_and_quoted_values():
    text = '# a comment\n\nA=1\nB="two words"\nC=\nD=x=y\n'
    assert parse(text, "f") == {"A": "1", "B": "two words", "C": "", "D": "x=y"}


@pytest.mark.parametrize("line", ["A=$HOME/x", "A=`id`", "export A=1", "A=b c", "A"])
def test_parse_refuses_what_bash_would_execute_or_expand(line):
    with pytest.raises(LaunchError, match=r"site.env, line 2: .* is not KEY=value"):
        parse(f"# first\n{line}\n", "site.env")


def test_the_environment_wins_over_the_file(tmp_path, monkeypatch):
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "lab.env").write_text("SOME_A=1\nSOME_B=2\n")
    monkeypatch.setenv("SOME_B", "mine")
    site = load_site("lab", tmp_path)
    assert site.variables == {"SOME_A": "1", "SOME_B": "mine"}
    assert site.gpus_per_node is None


def test_an_unknown_site_lists_what_there_is():
    with pytest.raises(LaunchError, match="no site 'dgx_h10'.*Did you mean dgx_h100"):
        load_site("dgx_h10", root_dir())


def test_every_site_of_the_checkout_parses():
    root = root_dir()
    names = {path.stem for path in (root / "launch").glob("*.env")}
    assert names == {"generic", "local", "dgx_h100", "gh200"}
    runtimes = {
        name: load_site(name, root).variables["NEMO_RL_CONTAINER_RUNTIME"]
        for name in names
    }
    assert set(runtimes.values()) <= {"none", "pyxis", "apptainer"}
    assert load_site("gh200", root).gpus_per_node == 4


def test_root_dir_by_variable_and_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("NEMO_RL_ROOT", str(tmp_path))
    with pytest.raises(LaunchError, match=r"holds no slurm/job.sh"):
        root_dir()
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "job.sh").touch()
    assert root_dir() == tmp_path.resolve()
    monkeypatch.delenv("NEMO_RL_ROOT")
    monkeypatch.chdir(tmp_path)
    assert root_dir() == tmp_path


def test_default_site(monkeypatch):
    monkeypatch.delenv("NEMO_RL_SITE", raising=False)
    assert default_name() == "generic"
    monkeypatch.setenv("NEMO_RL_SITE", "gh200")
    assert default_name() == "gh200"
