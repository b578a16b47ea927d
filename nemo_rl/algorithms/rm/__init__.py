"""Reward models: config, loss, validation, trainer."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BradleyTerryLossFn": "nemo_rl.algorithms.rm.loss",
        "RMConfig": "nemo_rl.algorithms.rm.config",
        "RMMasterConfig": "nemo_rl.algorithms.rm.config",
        "RMTrainer": "nemo_rl.algorithms.rm.trainer",
    },
)
