"""Training algorithms, one folder each; they do not import one another."""

from nemo_rl._aliases import LATER
from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "AlgorithmInterface": "nemo_rl.algorithms.interfaces",
        "DPOConfig": "nemo_rl.algorithms.dpo.config",
        "GRPO": "nemo_rl.algorithms.policy_first",
        "GRPOConfig": "nemo_rl.algorithms.grpo.config",
        "GRPOLossFn": "nemo_rl.algorithms.grpo.loss",
        "GRPOTrainer": "nemo_rl.algorithms.grpo.trainer",
        "LossFunctionInterface": "nemo_rl.algorithms.interfaces",
        "SFTConfig": "nemo_rl.algorithms.sft.config",
    },
    later=LATER[__name__],
)
