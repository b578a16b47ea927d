"""The PyTorch-native engine: Hugging Face models under FSDP2 and tensor parallelism."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__, {"DTensorBackend": "nemo_rl.backends.training.dtensor.backend"}
)
