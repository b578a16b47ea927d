"""Group Relative Policy Optimization: config, loss, data, trainer."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ClippedPGLossConfig": "nemo_rl.algorithms.grpo.config",
        "GRPOConfig": "nemo_rl.algorithms.grpo.config",
        "GRPOLossFn": "nemo_rl.algorithms.grpo.loss",
        "GRPOMasterConfig": "nemo_rl.algorithms.grpo.config",
        "GRPOTrainer": "nemo_rl.algorithms.grpo.trainer",
    },
)
