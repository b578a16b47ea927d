"""Engines on the ranks: they train, generate and move weights."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BackendFactory": "nemo_rl.backends.factory",
        "get_generation_backend": "nemo_rl.backends.factory",
        "get_training_backend": "nemo_rl.backends.factory",
        "register_generation_backend": "nemo_rl.backends.generation.base",
        "register_training_backend": "nemo_rl.backends.training.base",
    },
)
