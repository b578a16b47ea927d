"""Supervised fine-tuning: config; the trainer is not in this version."""

from nemo_rl._aliases import LATER
from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "SFTConfig": "nemo_rl.algorithms.sft.config",
        "SFTMasterConfig": "nemo_rl.algorithms.sft.config",
    },
    later=LATER[__name__],
)
