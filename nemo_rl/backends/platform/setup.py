"""Prepare one process: device, torch.distributed backend, Megatron's CPU shim.

``setup()`` runs in every worker before ``megatron`` is imported. Everything above it
asks the returned ``Platform`` and never looks at the device itself.
"""

from __future__ import annotations

import datetime
import importlib.util
import random
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from nemo_rl.distributed.rank import RankInfo
from nemo_rl.utils.exceptions import ResourceError

_COLLECTIVE_TIMEOUT = datetime.timedelta(minutes=30)


@dataclass(frozen=True)
class Platform:
    """What a rank may know about the hardware under it.

    Attributes:
        device: where parameters and activations live.
        dist_backend: ``"nccl"`` or ``"gloo"``.
        layer_spec: the layer implementation that ``"auto"`` stands for.
        transformer_overrides: fields of Megatron's ``TransformerConfig`` that this
            hardware needs (fused kernels off where there are none).
    """

    device: torch.device
    dist_backend: str
    layer_spec: str
    transformer_overrides: dict[str, Any] = field(default_factory=dict)

    def seed(self, seed: int) -> None:
        """Seed every generator of this process, Megatron's tracker included."""
        from megatron.core import tensor_parallel

        random.seed(seed)
        torch.manual_seed(seed)
        tensor_parallel.model_parallel_cuda_manual_seed(seed)

    def peak_memory_bytes(self) -> int:
        """Peak bytes held by this process: device memory on GPU, RSS on CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Most main memory that this process ever held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


_CPU_OVERRIDES: dict[str, Any] = {
    "use_cpu_initialization": True,
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "apply_rope_fusion": False,
    "moe_permute_fusion": False,
    "persist_layer_norm": False,
}


def setup(
    rank: RankInfo, *, threads: int | None = None, megatron: bool = True
) -> Platform:
    """Bind the device, install the CPU shim where needed, join the process group.

    Args:
        rank: this process's place; rank 0's address is the rendezvous.
        threads: intra-op threads of a CPU rank; None leaves torch's setting.
        megatron: whether this process will import megatron-core.

    Raises:
        ResourceError: a GPU was promised and this process sees none.
    """
    # Advice on optional libraries, repeated by every rank.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"megatron\.")
    platform = _gpu_platform(rank) if rank.use_gpu else _cpu_platform(threads, megatron)
    if not dist.is_initialized():
        dist.init_process_group(
            platform.dist_backend,
            init_method=rank.init_method,
            rank=rank.rank,
            world_size=rank.world_size,
            timeout=_COLLECTIVE_TIMEOUT,
        )
    return platform


def _gpu_platform(rank: RankInfo) -> Platform:
    if not torch.cuda.is_available():
        raise ResourceError(
            f"rank {rank.rank} was given a GPU, but torch {torch.__version__} sees "
            "none in this process. Check the driver, the container's GPU flags and "
            "that torch is a CUDA build; for a run without GPUs set "
            "cluster.gpus_per_node=0 and cluster.cpu_workers_per_node."
        )
    # Ray narrows CUDA_VISIBLE_DEVICES to the one GPU of the actor.
    index = rank.local_rank if torch.cuda.device_count() > 1 else 0
    torch.cuda.set_device(index)
    has_te = importlib.util.find_spec("transformer_engine_torch") is not None
    return Platform(
        device=torch.device("cuda", index),
        dist_backend="nccl",
        layer_spec="te" if has_te else "torch",
        transformer_overrides=(
            {} if has_te else {"gradient_accumulation_fusion": False}
        ),
    )


def _cpu_platform(threads: int | None, megatron: bool) -> Platform:
    if megatron:
        from nemo_rl.backends.platform import cpu_shim

        cpu_shim.install()
    if threads is not None:
        torch.set_num_threads(threads)
    return Platform(
        device=torch.device("cpu"),
        dist_backend="gloo",
        layer_spec="torch",
        transformer_overrides=dict(_CPU_OVERRIDES),
    )
