"""Tests of nemo_rl.launch.preflight.login, with programs in the place of SLURM's."""

from __future__ import annotations

import pytest

from nemo_rl.launch.job import make_job
from nemo_rl.launch.preflight import login
from nemo_rl.launch.site import Site, load_site, root_dir

ROOT = root_dir()
LLAMA = ROOT / "recipes" / "grpo_llama8b.yaml"
SCONTROL = """case $* in
  ping) echo "Slurmctld(primary) at head is UP" ;;
  *nowhere*) echo "slurm_load_partitions error: Invalid partition name" >&2; exit 1 ;;
  *) echo "PartitionName=debug State=UP MaxTime=00:30:00 TotalNodes=4 Default=NO"
     echo "PartitionName=batch State=UP MaxTime=1-00:00:00 MaxNodes=64" \\
       "TotalNodes=128 Default=YES AllowAccounts=lab,ops" ;;
esac"""


@pytest.fixture
def slurm(program):
    program("scontrol", SCONTROL)
    program(
        "sinfo",
        'case $* in --version) echo slurm 23.11.4;; *) echo "gpu:h100:8(S:0-1)";; esac',
    )
    program("sacctmgr", "printf 'lab\\nops\\n'")


@pytest.fixture
def asking(context):
    """Return a function: a context with a recipe's job."""

    def make(*overrides, **environ):
        place = load_site("generic", ROOT)
        spec, config = make_job(LLAMA, list(overrides), root=ROOT, site=place)
        extra = {"spec": spec, "config": config, "site": place, "root": ROOT}
        return context(variables=environ, extra=extra)

    return make


def test_slurm(context, slurm, program):
    assert login.slurm(context()).measured == "23.11.4, with accounting"
    program("sacctmgr", "exit 1")
    assert login.slurm(context()).measured == "23.11.4, without accounting"
    program("scontrol", "echo Slurmctld is DOWN; exit 1")
    assert login.slurm(context()).verdict == "fail"


def test_no_slurm_here(context):
    found = login.slurm(context(variables={"PATH": "/nowhere"}))
    assert found.measured == "sinfo is not installed here"
    assert "--site local" in found.cure


def test_a_job_within_its_partition(asking, slurm):
    found = login.partition(asking())
    assert (found.verdict, found.blame) == ("ok", "node")
    assert found.measured == "batch UP, 128 nodes, time 1-00:00:00, GPUs 8"


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("cluster.time=2-00:00:00", "time 2-00:00:00 is beyond 1-00:00:00"),
        ("cluster.num_nodes=128", "128 nodes are beyond MaxNodes=64"),
        ("cluster.account=art", "account art is not among lab,ops"),
        ("cluster.partition=nowhere", "Invalid partition name"),
    ],
)
def test_a_job_beyond_its_partition(asking, slurm, override, complaint):
    rows = "grpo.num_prompts_per_step=1024"
    found = login.partition(asking(override, rows))
    assert (found.verdict, found.blame) == ("fail", "user")
    assert complaint in found.measured


def test_account(asking, slurm, program):
    assert login.account(asking()).verdict == "skipped"
    assert login.account(asking(SBATCH_ACCOUNT="ops")).verdict == "ok"
    found = login.account(asking("cluster.account=art"))
    assert found.measured == "art; yours: lab, ops"
    program("sacctmgr", "exit 1")
    assert login.account(asking("cluster.account=art")).verdict == "skipped"


def test_image(asking, tmp_path):
    assert login.image(asking()).verdict == "skipped"
    pyxis = {"NEMO_RL_CONTAINER_RUNTIME": "pyxis"}
    path = tmp_path / "x.sqsh"
    found = login.image(asking(**pyxis, NEMO_RL_CONTAINER=str(path)))
    assert found.verdict == "fail" and "No such file" in found.measured
    path.write_bytes(b"<html>")
    found = login.image(asking(**pyxis, NEMO_RL_CONTAINER=str(path)))
    assert "is no .sqsh file" in found.measured
    path.write_bytes(b"hsqs" + bytes(100))
    assert login.image(asking(**pyxis, NEMO_RL_CONTAINER=str(path))).verdict == "ok"
    found = login.image(asking(**pyxis, NEMO_RL_CONTAINER="nvcr.io#nvidia/x:1"))
    assert found.verdict == "warn" and "registry" in found.measured


def test_mounts(context, tmp_path):
    def mounted(text):
        environ = {
            "NEMO_RL_CONTAINER_RUNTIME": "pyxis",
            "NEMO_RL_CONTAINER_MOUNTS": text,
        }
        return login.mounts(context(variables=environ))

    assert mounted("").verdict == "ok"
    assert mounted(f"{tmp_path}:/data:ro").verdict == "ok"
    assert mounted("/data").verdict == "fail"
    found = mounted(f"{tmp_path}/gone:/data")
    assert found.verdict == "warn" and "gone" in found.measured


def test_site(context):
    fine = login.site(context(extra={"site": load_site("dgx_h100", ROOT)}))
    assert fine.verdict == "ok"
    wrong = Site("lab", {"NEMO_RL_TEMPDIR": "/x"})
    found = login.site(context(extra={"site": wrong}))
    assert found.verdict == "fail" and "Did you mean NEMO_RL_TMPDIR" in found.cure


def test_secrets(context, asking):
    place = Site("lab", {"WANDB_API_KEY": "abc", "NCCL_DEBUG": "INFO"})
    found = login.secrets(context(extra={"site": place}))
    assert (found.verdict, found.measured) == ("fail", "launch/lab.env: WANDB_API_KEY")
    assert "abc" not in found.line()
    assert login.secrets(asking()).verdict == "ok"
    assert login._keys({"a": {"hf_token": "x", "token_limit": "y"}}) == ["a.hf_token"]
