"""Tests of the command line, `python -m nemo_rl.launch`."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from nemo_rl.launch.__main__ import main
from nemo_rl.launch.site import root_dir

ROOT = root_dir()


def test_dry_run_prints_configuration_and_script(capsys):
    arguments = ["grpo_llama8b", "--dry-run", "--nodes", "16", "--time", "1-00:00:00"]
    assert main([*arguments, "grpo.seed=3"]) == 0
    out = capsys.readouterr().out
    assert "num_nodes: 16" in out
    assert "#SBATCH --nodes=16" in out
    assert "#SBATCH --time=1-00:00:00" in out
    assert "OVERRIDES=(grpo.seed=3 cluster.num_nodes=16" in out


def test_dry_run_needs_nothing_heavy():
    program = (
        "import sys; from nemo_rl.launch.__main__ import main; "
        "code = main(['grpo_smollm2_cpu', '--dry-run']); "
        "heavy = {'torch', 'ray', 'transformers', 'megatron', 'submitit'}; "
        "found = heavy & set(sys.modules); assert not (code or found), found"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which recipe? There are: dpo_llama8b, dpo_smollm2_cpu, eval_sm"),
        (["grpo.seed=1", "--dry-run"], "which recipe?"),
        (["grpo_llama"], "no recipe grpo_llama."),
        (["grpo_llama8b", "grpo.sed=1"], "grpo.sed is not a field"),
        (["grpo_llama8b", "--site", "gh200"], "a node of site gh200 has 4 GPUs"),
        (["grpo_llama8b", "--site", "nowhere"], "no site 'nowhere'"),
        (["grpo_llama8b", "--write", "--nodes", "4"], "--write records a recipe as"),
        (["grpo_llama8b", "--nodes", "3"], "train_global_batch_size"),
        (["grpo_llama8b", "--nodes", "3+"], "--nodes 3+: expected a number of nodes"),
        (["grpo_llama8b", "--write", "--chain", "1"], "--write records a recipe as"),
        (["grpo_llama8b", "--chain", "1", "--sweep", "grpo.seed=1"], "do not go"),
        (["grpo_llama8b", "--sweep", "grpo.seed"], "expected key=a,b,c"),
        (["grpo_llama8b", "--follow", "--sweep", "grpo.seed=1,2"], "use --wait"),
        (["grpo_llama8b", "--follow", "--json"], "--json goes with --dry-run"),
        (["grpo_smollm2_cpu", "--local", "--wait"], "site local has none"),
        (["grpo_smollm2_cpu", "--local", "--chain", "1"], "site local has none"),
        (["grpo_llama8b", "--site", "dgx_h100", "--test-only"], "nemo_rl.sqsh does"),
    ],
)
def test_mistakes_are_one_paragraph_and_exit_2(arguments, message, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run", "--test-only"], "not allowed with argument"),
        (["--wait", "--follow"], "not allowed with argument"),
        (["--site", "gh200", "--local"], "not allowed with argument"),
        (["--chain", "two"], "invalid int value: 'two'"),
        (["--dryrun"], "unrecognized arguments: --dryrun"),
        (["--dry"], "unrecognized arguments: --dry"),
    ],
)
def test_unknown_and_contrary_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["launch", "grpo_llama8b", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_debug_shows_the_traceback(capsys):
    assert main(["grpo_llama", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_write_records_the_script(tmp_path, monkeypatch, capsys):
    for name in ("slurm", "launch", "recipes"):
        shutil.copytree(ROOT / name, tmp_path / name)
    script = tmp_path / "recipes" / "grpo_llama8b.sh"
    recorded = script.read_text()
    script.unlink()
    monkeypatch.setenv("NEMO_RL_ROOT", str(tmp_path))
    assert main(["grpo_llama8b", "--write"]) == 0
    assert script.read_text() == recorded
    assert f"wrote {script}" in capsys.readouterr().out
