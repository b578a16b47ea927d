"""Fixtures: real SLURM clusters on this host, a checkout to submit from, a model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import workplace
from tests.slurm.cluster import PACKAGES, Cluster, missing_programs

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
    return workplace.make_checkout(short_dir / "repo")


@pytest.fixture(scope="session")
def job_env(short_dir: Path) -> dict[str, str]:
    """What jobs need to run here."""
    # Checks that start programs; test_preflight.py has them.
    skip = {"NEMO_RL_PREFLIGHT_SKIP": "rows,allreduce"}
    return workplace.job_variables(short_dir) | skip


@pytest.fixture(scope="session")
def training(short_dir: Path) -> list[str]:
    """Overrides that make grpo_smollm2_cpu a matter of seconds."""
    return workplace.tiny_training(short_dir)
