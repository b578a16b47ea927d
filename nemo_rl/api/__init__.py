"""The high-level user API: `nemo_rl.train()` and the helpers beneath it."""

from nemo_rl._lazy import lazy_exports

# `train` is exported by nemo_rl alone: here it is the module that defines it.
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "build_config": "nemo_rl.api.functional",
        "config_class": "nemo_rl.api.functional",
        "create_trainer": "nemo_rl.api.functional",
        "load_recipe": "nemo_rl.api.functional",
    },
)
