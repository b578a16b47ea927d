"""On-policy distillation: config, loss, trainer."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "DistillationConfig": "nemo_rl.algorithms.distillation.config",
        "DistillationLossFn": "nemo_rl.algorithms.distillation.loss",
        "DistillationMasterConfig": "nemo_rl.algorithms.distillation.config",
        "DistillationTrainer": "nemo_rl.algorithms.distillation.trainer",
    },
)
