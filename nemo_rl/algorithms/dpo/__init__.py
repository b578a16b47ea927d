"""Direct preference optimization: config, loss, validation, trainer."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "DPOConfig": "nemo_rl.algorithms.dpo.config",
        "DPOLossFn": "nemo_rl.algorithms.dpo.loss",
        "DPOMasterConfig": "nemo_rl.algorithms.dpo.config",
        "DPOTrainer": "nemo_rl.algorithms.dpo.trainer",
    },
)
