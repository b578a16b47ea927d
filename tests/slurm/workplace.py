"""What jobs on a throw-away SLURM need: a checkout, a model, variables, overrides.

Plain functions, for fixtures and for benchmarks.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def make_checkout(folder: Path) -> Path:
    """Make a checkout whose results are thrown away; its recipes may be added to."""
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    for name in ("slurm", "launch", "nemo_rl"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(HERE / "slow_reward.py", folder / "recipes")
    return folder


def with_driver(checkout: Path, folder: Path, driver: str) -> Path:
    """Make a checkout like another, with another text for the driver's module.

    The true driver is beside it, as nemo_rl.launch.real_driver.
    """
    folder.mkdir()
    for name in ("slurm", "launch", "recipes"):
        (folder / name).symlink_to((checkout / name).resolve())
    package = (checkout / "nemo_rl").resolve()
    subprocess.run(["cp", "-rs", str(package), str(folder)], check=True)
    path = folder / "nemo_rl" / "launch" / "driver.py"
    path.unlink()
    shutil.copy(package / "launch" / "driver.py", path.with_name("real_driver.py"))
    path.write_text(driver)
    return folder


def job_variables(folder: Path) -> dict[str, str]:
    """Return the variables of a job whose files lie in a folder with a short path."""
    return {
        "NEMO_RL_PYTHON": sys.executable,
        "NEMO_RL_TMPDIR": str(folder),
        "NEMO_RL_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }


def tiny_training(folder: Path) -> list[str]:
    """Write a model; return overrides that make grpo_smollm2_cpu take seconds."""
    model = folder / "model"
    # As a module: a script's folder comes before Python's own, and has a secrets.py.
    writer = [sys.executable, "-m", "tests.slurm.tiny_model", str(model)]
    subprocess.run(writer, check=True, capture_output=True, cwd=ROOT)
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
