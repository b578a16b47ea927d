"""MegatronPolicy and HuggingFacePolicy: a policy from a model's name and keywords.

They sort keywords into the policy section and start a cluster of one worker where none
is given; everything else is ``Policy``.
"""

from __future__ import annotations

from typing import Any

from nemo_rl.config.base import BaseConfig
from nemo_rl.config.dtensor import DTensorConfig
from nemo_rl.config.megatron import MegatronConfig
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.distributed.interfaces import VirtualCluster
from nemo_rl.distributed.local import LocalCluster
from nemo_rl.models.policy.lm_policy import Policy
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.suggest import did_you_mean


class MegatronPolicy(Policy):
    """A policy on the Megatron engine by keywords, on a cluster of its own.

    Args:
        model_name: folder or name of the model.
        tokenizer: as for ``Policy``.
        cluster: None starts a process in place for one worker.
        **kwargs: fields of ``policy.megatron_cfg`` or of the policy section. Without
            ``train_global_batch_size`` every ``train`` makes one update.

    Example:
        >>> MegatronPolicy("my-model", tensor_model_parallel_size=2)  # doctest: +SKIP
    """

    def __init__(
        self,
        model_name: str,
        tokenizer: Any = None,
        cluster: VirtualCluster | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.pop("use_flash_attention", False):
            raise ConfigurationError(
                "use_flash_attention=True is not an option: Transformer Engine chooses "
                "flash attention itself. Set layer_spec='te', or leave both out."
            )
        section = _sorted(type(self).__name__, kwargs, MegatronConfig, "megatron_cfg")
        config = {**section, "model_name": model_name}
        super().__init__(cluster or LocalCluster(), config, tokenizer)
        self.training.one_update = "train_global_batch_size" not in config


class HuggingFacePolicy(Policy):
    """A policy on the DTensor engine by keywords, on a cluster of its own.

    Args:
        model_name: folder or name of the model.
        tokenizer: as for ``Policy``.
        cluster: None starts a process in place for one worker.
        **kwargs: fields of ``policy.dtensor_cfg`` or of the policy section. Of those
            of transformers: ``torch_dtype`` or ``dtype`` (``policy.precision``),
            ``device_map`` ("auto", "cpu" or "cuda"). ``trust_remote_code``,
            ``load_in_8bit`` and ``load_in_4bit`` must be false. Without
            ``train_global_batch_size`` every ``train`` makes one update.

    Raises:
        ConfigurationError: a keyword that is none of these, or cannot be.

    Example:
        >>> HuggingFacePolicy("my-model", torch_dtype="bfloat16")  # doctest: +SKIP
    """

    def __init__(
        self,
        model_name: str,
        tokenizer: Any = None,
        cluster: VirtualCluster | None = None,
        **kwargs: Any,
    ) -> None:
        use_gpus = from_transformers(kwargs, cluster)
        section = _sorted(type(self).__name__, kwargs, DTensorConfig, "dtensor_cfg")
        section["dtensor_cfg"]["enabled"] = True
        config = {**section, "model_name": model_name}
        cluster = cluster or LocalCluster(use_gpus=use_gpus)
        super().__init__(cluster, config, tokenizer)
        self.training.one_update = "train_global_batch_size" not in config


_REFUSED = {
    "trust_remote_code": "code of a model folder is never run. Use a model that "
    "transformers itself has",
    "load_in_8bit": "all weights are trained, in policy.precision 'bfloat16' or "
    "'float32'",
    "load_in_4bit": "all weights are trained, in policy.precision 'bfloat16' or "
    "'float32'",
}


def from_transformers(kwargs: dict[str, Any], cluster: VirtualCluster | None) -> bool:
    """Turn keywords of transformers into ours, in place.

    Returns:
        Whether a cluster of our own is to use a GPU.

    Raises:
        ConfigurationError: one of them asks for something that is not there.
    """
    for name, reason in _REFUSED.items():
        if kwargs.pop(name, False):
            raise ConfigurationError(f"{name}=True is not available: {reason}.")
    for name in ("torch_dtype", "dtype"):
        if name in kwargs:
            kwargs["precision"] = _precision(name, kwargs.pop(name))
    where = kwargs.pop("device_map", None)
    if where is not None and cluster is not None:
        raise ConfigurationError(
            f"device_map={where!r} and a cluster were given: the cluster decides where "
            "the model is. Leave device_map out."
        )
    if where not in (None, "auto", "cpu", "cuda"):
        raise ConfigurationError(
            f"device_map={where!r} is not one of 'auto', 'cpu', 'cuda'. To divide a "
            "model pass a cluster and tensor_parallel_size "
            "(policy.dtensor_cfg.tensor_parallel_size)."
        )
    if where == "auto":
        import torch

        return torch.cuda.is_available()
    return where == "cuda"


def _precision(name: str, value: Any) -> str:
    text = str(value).removeprefix("torch.")
    if text not in ("bfloat16", "float32"):
        raise ConfigurationError(
            f"{name}={value!r} is not one of 'bfloat16', 'float32' (policy.precision)."
        )
    return text


def _sorted(
    owner: str, kwargs: dict[str, Any], cls: type[BaseConfig], key: str
) -> dict[str, Any]:
    """Keywords as a policy section: the engine's own fields below ``key``."""
    inner = dict(kwargs.pop(key, None) or {})
    inner |= {name: kwargs.pop(name) for name in [*kwargs] if name in cls.model_fields}
    known = {*cls.model_fields, *PolicyConfig.model_fields}
    for name in kwargs:
        if name not in known:
            raise ConfigurationError(
                f"{owner} has no option {name!r}.{did_you_mean(name, known)}"
            )
    return {**kwargs, key: inner}
