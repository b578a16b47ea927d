"""Direct Preference Optimization: config; the trainer is not in this version."""

from nemo_rl._aliases import LATER
from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "DPOConfig": "nemo_rl.algorithms.dpo.config",
        "DPOMasterConfig": "nemo_rl.algorithms.dpo.config",
    },
    later=LATER[__name__],
)
