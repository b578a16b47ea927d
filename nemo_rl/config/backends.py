"""Which engine trains and which one generates: names, choice and layout.

Arithmetic and names only: the classes behind the names are found by
`nemo_rl.backends.factory`. Which training engine is on follows from
`policy.training_backend`, `policy.dtensor_cfg.enabled` and
`policy.megatron_cfg.enabled`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemo_rl.config.parallel import ParallelDims
from nemo_rl.utils.suggest import did_you_mean

if TYPE_CHECKING:
    from nemo_rl.config.policy import PolicyConfig

BUILT_IN: dict[str, dict[str, str]] = {
    "training": {
        "megatron": "nemo_rl.backends.training.megatron.backend:MegatronBackend",
        "dtensor": "nemo_rl.backends.training.dtensor.backend:DTensorBackend",
    },
    "generation": {
        "megatron": "nemo_rl.backends.generation.megatron:MegatronInferenceBackend",
        "hf": "nemo_rl.backends.generation.hf:HFBackend",
        "vllm": "nemo_rl.backends.generation.vllm.backend:VLLMBackend",
    },
}
"""Kind -> name -> class as "module:Class"."""
REGISTERED: dict[str, dict[str, type]] = {"training": {}, "generation": {}}
"""Kind -> name -> class, of the `register_..._backend` decorators."""

_GENERATES_WITH = {"megatron": "megatron", "dtensor": "hf"}
"""Training engine -> the generation engine that samples with its weights."""


def check_name(kind: str, name: str) -> None:
    """Check that a name is built in, registered, or "module:Class".

    Raises:
        ValueError: it is none of these.
    """
    known = [*BUILT_IN[kind], *REGISTERED[kind]]
    if name not in known and ":" not in name:
        raise ValueError(
            f"is not one of {', '.join(known)}, and no 'module:Class'."
            f"{did_you_mean(name, known)}"
        )


def training_backend(policy: PolicyConfig) -> str:
    """The name of the training engine; Megatron unless another one is on."""
    if policy.training_backend is not None:
        return policy.training_backend
    return "dtensor" if policy.dtensor_cfg.enabled else "megatron"


def generation_backend(policy: PolicyConfig) -> str:
    """The name of the generation engine; None in the recipe: the training engine's."""
    given = policy.generation.backend
    return given or _GENERATES_WITH.get(training_backend(policy), "")


def generates_apart(policy: PolicyConfig) -> bool:
    """Whether generation has processes, and a copy of the weights, of its own."""
    return generation_backend(policy) == "vllm"


def check_backends(policy: PolicyConfig) -> None:
    """Check that exactly one training engine is on, and that the generator fits it.

    Raises:
        ValueError: none or several are on, sizes are set for one that is off, or the
            generator needs another training engine's weights.
    """
    chosen = training_backend(policy)
    wanted = {
        "dtensor": policy.dtensor_cfg.enabled,
        "megatron": bool(policy.megatron_cfg.enabled),
    }
    others = [name for name, on in wanted.items() if on and name != chosen]
    if others:
        by = (
            f"training_backend={chosen!r}"
            if policy.training_backend is not None
            else f"{chosen}_cfg.enabled"
        )
        also = " and ".join(f"{name}_cfg.enabled" for name in others)
        raise ValueError(
            f"{by} and {also} choose different training backends; leave one of them "
            f"on (set {also} to false)."
        )
    if chosen == "megatron" and policy.megatron_cfg.enabled is False:
        raise ValueError(
            "megatron_cfg.enabled is false and no other training backend is on. Set "
            "dtensor_cfg.enabled to true, name one in training_backend, or leave "
            "megatron_cfg.enabled out."
        )
    if chosen == "dtensor" and policy.reward_model_cfg.enabled:
        raise ValueError(
            "reward_model_cfg.enabled=true, but reward models are trained by Megatron: "
            "set dtensor_cfg.enabled to false."
        )
    _check_sizes(policy, chosen)
    _check_generator(policy, chosen)
    _check_placement(policy)


def _check_sizes(policy: PolicyConfig, chosen: str) -> None:
    megatron = policy.megatron_cfg
    if chosen == "megatron" or megatron.enabled is False:
        return
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
        size = getattr(megatron, name)
        if size > 1:
            instead = (
                "Set dtensor_cfg.tensor_parallel_size instead"
                if chosen == "dtensor" and name.startswith("tensor")
                else "Set it to 1"
            )
            raise ValueError(
                f"megatron_cfg.{name}={size}, but training_backend is {chosen!r}, "
                f"which does not read it. {instead}, or switch the section off by "
                "megatron_cfg.enabled: false."
            )


def _check_generator(policy: PolicyConfig, chosen: str) -> None:
    given = policy.generation.backend
    for training, generation in _GENERATES_WITH.items():
        if given == generation and chosen != training:
            fits = _GENERATES_WITH.get(chosen)
            use = f"{fits!r}, or leave it out" if fits else "a 'module:Class' of yours"
            raise ValueError(
                f"generation.backend={given!r} samples with the weights of the "
                f"{training!r} training backend, but {chosen!r} trains; set it to "
                f"{use}."
            )


def _check_placement(policy: PolicyConfig) -> None:
    """Check that a generator with machines of its own has weights of its own.

    Raises:
        ValueError: it has not.
    """
    if not policy.generation.colocated.enabled and not generates_apart(policy):
        raise ValueError(
            "generation.colocated.enabled=false, but generation.backend="
            f"{generation_backend(policy)!r} samples with the weights of the training "
            "processes: set it to 'vllm', or colocated.enabled to true."
        )


def tensor_parallel_key(policy: PolicyConfig) -> str:
    """The key that sets the tensor-parallel size, for messages."""
    if training_backend(policy) == "dtensor":
        return "policy.dtensor_cfg.tensor_parallel_size"
    return "policy.megatron_cfg.tensor_model_parallel_size"


def model_sizes(policy: PolicyConfig) -> tuple[int, int]:
    """Tensor and pipeline parallel size of the engine that is on.

    A backend of one's own has a whole copy of the model on every worker.
    """
    chosen, megatron = training_backend(policy), policy.megatron_cfg
    if chosen == "megatron":
        pp = megatron.pipeline_model_parallel_size
        return megatron.tensor_model_parallel_size, pp
    return (policy.dtensor_cfg.tensor_parallel_size if chosen == "dtensor" else 1), 1


def parallel_dims(policy: PolicyConfig, world_size: int) -> ParallelDims:
    """The layout of the workers, from the section of the engine that is on.

    Raises:
        ConfigurationError: the sizes do not divide the world size.
    """
    tp, pp = model_sizes(policy)
    megatron = policy.megatron_cfg
    on = training_backend(policy) == "megatron"
    return ParallelDims(
        world_size,
        tp=tp,
        pp=pp,
        cp=megatron.context_parallel_size if on else 1,
        ep=megatron.expert_model_parallel_size if on else 1,
    )


def worker_env(policy: PolicyConfig) -> dict[str, str]:
    """Extra environment variables of the workers."""
    sections = {"dtensor": policy.dtensor_cfg, "megatron": policy.megatron_cfg}
    chosen = sections.get(training_backend(policy))
    return dict((chosen.env_vars if chosen else None) or {})
