"""The one table of the environment variables that nemo_rl reads or sets.

SLURM's others and torchrun's are in `distributed.rank`, a site's in `launch.site`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

VARIABLES: dict[str, str] = {
    "NEMO_RL_CACHE": "folder of converted models; default ~/.cache/nemo_rl",
    "NEMO_RL_ROOT": "checkout that holds recipes/, launch/ and slurm/",
    "NEMO_RL_SITE": "name of a launch/<site>.env; default generic",
    "NEMO_RL_PREFLIGHT": "0: a job trains without checking its nodes first",
    "NEMO_RL_PREFLIGHT_SKIP": "names of checks to leave out, with commas between",
    "NEMO_RL_PULSE_DIR": "node-local folder of the watchdog; set by whoever watches",
    "NEMO_RL_DEBUG": "1: full tracebacks and debug logging",
    "NRL_CONTAINER": "set inside the container image; shown at the start of a run",
    "NRL_FORCE_REBUILD_VENVS": "a warning: workers have no environments of their own",
    "NRL_IGNORE_VERSION_MISMATCH": (
        "1: workers may have other library versions than the driver"
    ),
    "NEMO_RL_END_FILE": "file with the second since 1970 in which SLURM ends the job",
    "SLURM_JOB_END_TIME": "the same, set by newer versions of SLURM",
    "NEMO_RL_RAY_READY": "file that appears when all nodes have joined Ray",
    "RAY_ADDRESS": "join this Ray cluster instead of starting one",
    "RAY_USAGE_STATS_ENABLED": "Ray's telemetry; 0 unless set",
    "CUDA_VISIBLE_DEVICES": "the GPUs this process may use",
    "HF_HOME": "cache of the Hugging Face hub",
    "HF_HUB_OFFLINE": "1: never ask the hub",
}
"""Every variable the package reads, and what it means."""


def read(name: str, default: str | None = None) -> str | None:
    """Return a variable of `VARIABLES`; an empty one counts as unset.

    Raises:
        KeyError: the variable is not in the table.
    """
    if name not in VARIABLES:
        raise KeyError(f"{name} is not in the table of environment variables")
    return os.environ.get(name) or default


def secret(name: str) -> str | None:
    """Return the variable that a recipe names as holder of a key.

    The name stands in the configuration; the value never does.
    """
    return os.environ.get(name) or None


def flag(name: str) -> bool:
    """Return whether a variable of `VARIABLES` is switched on."""
    return (read(name) or "0").strip().lower() not in {"0", "false", "no", "off"}


def off(name: str) -> bool:
    """Return whether a variable of `VARIABLES` is set, and set to no."""
    return (read(name) or "1").strip().lower() in {"0", "false", "no", "off"}


def cache_dir() -> Path:
    """Return the folder for converted models (not created here)."""
    configured = read("NEMO_RL_CACHE")
    if configured:
        return Path(configured).expanduser()
    return Path.home() / ".cache" / "nemo_rl"


def root_dir() -> Path | None:
    """Return the checkout named by NEMO_RL_ROOT, if it is set."""
    configured = read("NEMO_RL_ROOT")
    return Path(configured).expanduser() if configured else None


def visible_gpus() -> int | None:
    """Return how many GPUs CUDA_VISIBLE_DEVICES names; None where it is not set."""
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices is None:
        return None
    return len([name for name in devices.split(",") if name.strip() not in ("", "-1")])


def inherited() -> dict[str, str]:
    """Return a copy of this process's environment, for a child process."""
    return dict(os.environ)


def apply(values: Mapping[str, str]) -> None:
    """Set variables in this process, for libraries that read them when imported."""
    os.environ.update(values)


def worker_env(*, use_gpus: bool, threads: int = 1) -> dict[str, str]:
    """Return the variables a worker process is started with.

    Args:
        use_gpus: whether the worker owns a GPU.
        threads: CPU threads of its math libraries.

    Returns:
        name -> value; to be set before the worker imports torch.
    """
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Waiting threads sleep: with more workers than cores, spinning ones take
        # the core from the worker they wait for.
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": "0",
        # Megatron's overlap of tensor-parallel communication relies on kernels
        # starting in the order they were queued.
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    if use_gpus:
        variables["TORCH_NCCL_AVOID_RECORD_STREAMS"] = "1"
    else:
        # A CPU worker has no compiler at hand and nothing to win from one.
        variables["TORCHDYNAMO_DISABLE"] = "1"
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables
