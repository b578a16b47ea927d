"""The Megatron-core engine: model, schedule, optimizer, checkpoint, export."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {"MegatronBackend": "nemo_rl.backends.training.megatron.backend"}
)
