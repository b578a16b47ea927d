"""How weights move to a generator: what the recipe wants, or what fits the machines."""

from __future__ import annotations

from nemo_rl.config.refit import RefitConfig
from nemo_rl.utils.exceptions import ConfigurationError


def choose_transport(
    config: RefitConfig, *, colocated: bool, use_gpus: bool, same_host: bool
) -> str:
    """How weights move: ``config.transport``, or what fits where that is ``auto``.

    Args:
        config: policy.generation.refit.
        colocated: training and generation take turns on the same devices.
        use_gpus: they run on GPUs.
        same_host: all of their processes are on one machine.

    Returns:
        ``gloo``, ``nccl``, ``ipc`` or ``files``. Auto is gloo on CPUs, nccl between
        GPUs of each their own, ipc on shared GPUs of one machine, and on those of
        several gloo.

    Raises:
        ConfigurationError: the wanted transport cannot work here.
    """
    key = "policy.generation.refit.transport"
    wanted = config.transport
    if wanted == "auto":
        if not use_gpus:
            return "gloo"
        if not colocated:
            return "nccl"
        return "ipc" if same_host else "gloo"
    if wanted == "nccl" and not use_gpus:
        raise ConfigurationError(
            f"{key} is nccl, which moves weights between GPUs, and this run has none: "
            "set it to gloo, or to auto."
        )
    if wanted == "nccl" and colocated:
        raise ConfigurationError(
            f"{key} is nccl, and training and generation share their GPUs: NCCL does "
            "not connect two processes of one GPU. Set it to "
            f"{'ipc' if same_host else 'gloo'}, or to auto."
        )
    if wanted == "ipc" and not same_host:
        raise ConfigurationError(
            f"{key} is ipc, which moves weights inside one machine, and training and "
            f"generation run on several: set it to "
            f"{'nccl' if use_gpus and not colocated else 'gloo'}, to files with "
            "policy.generation.refit.folder, or to auto."
        )
    return wanted
