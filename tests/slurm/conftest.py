"""Fixtures: real SLURM clusters on this host, a checkout to submit from, a model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import PACKAGES, Cluster, missing_programs

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
GRACE_S = 120
"""What a job has left when a job of partition "urgent" takes its nodes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def short_dir() -> Iterator[Path]:
    """A folder with a short path: Ray puts sockets below it, of 107 letters at most."""
    folder = Path(tempfile.mkdtemp(prefix="nrl-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def programs() -> None:
    """SLURM's programs: without them tests fail in CI and are skipped elsewhere."""
    missing = missing_programs()
    if not missing:
        return
    text = f"missing {', '.join(missing)}: apt-get install -y {PACKAGES}"
    if os.environ.get("CI") == "true":
        pytest.fail(text)
    pytest.skip(text)


@pytest.fixture(scope="session")
def cluster(programs: None, short_dir: Path) -> Iterator[Cluster]:
    """Four nodes with two CPUs each, in the partitions batch and urgent."""
    # slurmctld itself would notice a dead node only after slurmd_timeout.
    with Cluster(
        short_dir / "slurm", nodes=4, slurmd_timeout=600, grace=GRACE_S
    ) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def cloud(programs: None, short_dir: Path) -> Iterator[Cluster]:
    """A slurmctld with 4,096 nodes of eight GPUs that never boot."""
    with Cluster(short_dir / "cloud", nodes=0, cloud=4096) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def checkout(short_dir: Path) -> Path:
    """A checkout whose results are thrown away; its recipes may be added to."""
    folder = short_dir / "repo"
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    for name in ("slurm", "launch", "nemo_rl"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(HERE / "slow_reward.py", folder / "recipes")
    return folder


@pytest.fixture(scope="session")
def job_env(short_dir: Path) -> dict[str, str]:
    """What jobs need to run here."""
    return {
        "NEMO_RL_PYTHON": sys.executable,
        "NEMO_RL_TMPDIR": str(short_dir),
        "NEMO_RL_CACHE": str(short_dir / "cache"),
        "OMP_NUM_THREADS": "1",
        # Those that start programs; test_preflight.py has them.
        "NEMO_RL_PREFLIGHT_SKIP": "rows,allreduce",
    }


@pytest.fixture(scope="session")
def training(short_dir: Path) -> list[str]:
    """Overrides that make grpo_smollm2_cpu a matter of seconds."""
    model = short_dir / "model"
    writer = [sys.executable, str(HERE / "tiny_model.py"), str(model)]
    subprocess.run(writer, check=True, capture_output=True)
    return [
        f"policy.model_name={model}",
        "policy.generation.max_new_tokens=4",
        "grpo.num_prompts_per_step=2",
        "grpo.num_generations_per_prompt=3",
        "policy.train_micro_batch_size=3",
        "grpo.val_period=0",
        "grpo.val_at_start=false",
        "grpo.val_at_end=false",
        "checkpointing.export_hf=false",
        "checkpointing.metric_name=null",
        "logger.tensorboard_enabled=false",
        "cluster.cpu_workers_per_node=1",
    ]


@pytest.fixture(scope="session")
def with_driver(checkout: Path, short_dir: Path) -> Callable[[str, str], Path]:
    """Return a function that makes a checkout with another driver.

    The driver itself is there as nemo_rl.launch.real_driver.
    """

    def make(name: str, text: str) -> Path:
        folder = short_dir / name
        folder.mkdir()
        for part in ("slurm", "launch", "recipes"):
            (folder / part).symlink_to((checkout / part).resolve())
        package = (checkout / "nemo_rl").resolve()
        subprocess.run(["cp", "-rs", str(package), str(folder)], check=True)
        driver = folder / "nemo_rl" / "launch" / "driver.py"
        driver.unlink()
        shutil.copy(
            package / "launch" / "driver.py", driver.with_name("real_driver.py")
        )
        driver.write_text(text)
        return folder

    return make
