"""Tests of nemo_rl.launch.submission with small programs in the place of SLURM's.

A real SLURM is asked in tests/slurm.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest

import nemo_rl.launch
from nemo_rl.launch.job import JobSpec
from nemo_rl.launch.request import prepare
from nemo_rl.launch.script import render
from nemo_rl.launch.site import Site, root_dir
from nemo_rl.launch.submission import ask_slurm, submit, submit_prepared
from nemo_rl.utils.exceptions import LaunchError

SPEC = JobSpec(name="x", recipe="recipes/x.yaml", nodes=2)
SITE = Site("lab", {"SBATCH_PARTITION": "fast"})
SBATCH = (
    'pwd > seen; echo "$SBATCH_PARTITION" >> seen; cat "$1" >> texts; '
    "n=$(cat n 2>/dev/null || echo 42); echo $((n + 1)) > n; "
    'echo "Submitted batch job $n"'
)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Return a function that puts a shell program on the PATH."""
    pytest.importorskip("submitit", reason="pip install 'nemo_rl[slurm]'")
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def put(name, body):
        path = folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    put("srun", "exit 0")
    return put


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for name in ("slurm", "launch", "recipes"):
        shutil.copytree(root_dir() / name, tmp_path / name)
    (tmp_path / "launch" / "lab.env").write_text("SBATCH_PARTITION=fast\n")
    monkeypatch.setenv("NEMO_RL_ROOT", str(tmp_path))
    return tmp_path


def test_submit_is_what_the_package_exports():
    assert nemo_rl.launch.submit is submit
    assert callable(nemo_rl.launch.submit)


def test_submitits_job_has_our_text_and_the_sites_variables(checkout, programs):
    programs("sbatch", SBATCH)
    job = submit("grpo_smollm2_cpu", site="lab", overrides={"grpo.seed": 3})
    assert job.job_id == "42"
    assert (checkout / "seen").read_text() == f"{checkout}\nfast\n"
    prepared = prepare("grpo_smollm2_cpu", site="lab", overrides=["grpo.seed=3"])
    assert (checkout / "texts").read_text() == render(prepared.first)
    assert "SBATCH_PARTITION" not in os.environ
    assert job.run_dir == checkout / "results" / "grpo_smollm2_cpu" / "42"
    manifest = json.loads((job.run_dir / "launch.json").read_text())
    assert manifest["recipe"]["overrides"] == ["grpo.seed=3"]
    assert (manifest["job_ids"], manifest["node_hours"]) == (["42"], 1.0)


def test_the_recipes_partition_wins_over_the_sites(checkout, programs):
    programs("sbatch", SBATCH)
    submit("grpo_smollm2_cpu", site="lab", overrides={"cluster.partition": "slow"})
    assert (checkout / "seen").read_text() == f"{checkout}\nslow\n"
    assert "SBATCH_PARTITION" not in os.environ


def test_a_chain_shares_the_first_jobs_folder(checkout, programs):
    programs("sbatch", SBATCH)
    job = submit("grpo_smollm2_cpu", chain=2)
    assert job.all_ids == ["42", "43", "44"]
    texts = (checkout / "texts").read_text().split("#!/bin/bash\n")[1:]
    for link, text in enumerate(texts):
        assert "#SBATCH --no-requeue\n" in text
        assert "--requeue" not in text.replace("--no-requeue", "")
        assert f"export NEMO_RL_CHAIN_LINK={link}\n" in text
        assert (f"--dependency=afterany:{41 + link}\n" in text) == (link > 0)
        assert (f"NEMO_RL_RUN_DIR={job.run_dir}\n" in text) == (link > 0)
    programs("scancel", f'echo "$@" > {checkout}/cancelled')
    job.cancel()
    assert (checkout / "cancelled").read_text() == "44 43 42\n"


def test_a_chain_that_is_refused_halfway_leaves_nothing(checkout, programs):
    programs(
        "sbatch",
        "[ ! -e n ] || { echo 'sbatch: error: full' >&2; exit 1; }\n" + SBATCH,
    )
    programs("scancel", f'echo "$@" > {checkout}/cancelled')
    with pytest.raises(LaunchError, match="link 1 of the chain was not accepted"):
        submit("grpo_smollm2_cpu", chain=2)
    assert (checkout / "cancelled").read_text() == "42\n"


def test_a_sweep_is_one_array_with_a_job_for_each_task(checkout, programs):
    programs("sbatch", SBATCH)
    jobs = submit("grpo_smollm2_cpu", sweep={"grpo.seed": [1, 2, 3]})
    assert [job.job_id for job in jobs] == ["42_0", "42_1", "42_2"]
    assert [job.run_dir.name for job in jobs] == ["42_0", "42_1", "42_2"]
    manifest = json.loads((jobs[2].run_dir / "launch.json").read_text())
    assert manifest["task_overrides"] == ["grpo.seed=3"]
    text = (checkout / "texts").read_text()
    assert "#SBATCH --array=0-2\n" in text
    assert "    2) OVERRIDES+=(grpo.seed=3) ;;" in text


def test_a_sweep_of_sizes_is_one_submission_each(checkout, programs):
    programs("sbatch", SBATCH)
    jobs = submit("grpo_smollm2_cpu", sweep=["cluster.num_nodes=1,2"])
    assert [job.job_id for job in jobs] == ["42", "43"]
    text = (checkout / "texts").read_text()
    assert "--array" not in text
    assert "#SBATCH --nodes=1\n" in text and "#SBATCH --nodes=2\n" in text


def test_a_refusal_is_told_in_slurms_words(checkout, programs):
    programs("sbatch", 'echo "sbatch: error: invalid partition" >&2; exit 1')
    with pytest.raises(LaunchError, match="refused the job: .*invalid partition"):
        submit("grpo_smollm2_cpu")
    with pytest.raises(LaunchError, match="refused the job: .*invalid partition"):
        ask_slurm(SPEC, root=checkout, site=SITE)


def test_site_local_has_no_slurm(checkout):
    with pytest.raises(LaunchError, match="site local has no SLURM"):
        submit_prepared(prepare("grpo_smollm2_cpu", site="local"))


def test_test_only_passes_the_script_on_stdin(tmp_path, programs):
    programs("sbatch", 'cat > text; echo "sbatch: Job 1 to start at noon" >&2')
    assert ask_slurm(SPEC, root=tmp_path, site=SITE) == "Job 1 to start at noon"
    assert (tmp_path / "text").read_text() == render(SPEC)


def test_without_slurm(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(checkout))
    with pytest.raises(LaunchError, match="sbatch is not installed here"):
        ask_slurm(SPEC, root=checkout, site=SITE)
    with pytest.raises(LaunchError, match="sbatch is not installed here"):
        submit("grpo_smollm2_cpu")
