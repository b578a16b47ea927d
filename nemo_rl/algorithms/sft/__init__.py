"""Supervised fine-tuning: config, loss, validation, trainer."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "NLLLossFn": "nemo_rl.algorithms.sft.loss",
        "SFTConfig": "nemo_rl.algorithms.sft.config",
        "SFTMasterConfig": "nemo_rl.algorithms.sft.config",
        "SFTTrainer": "nemo_rl.algorithms.sft.trainer",
    },
)
