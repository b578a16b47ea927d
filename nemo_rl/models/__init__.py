"""Handles on the driver: policies and generators that own groups of workers."""

from nemo_rl._aliases import LATER
from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "MegatronPolicy": "nemo_rl.models.policy.lm_policy",
        "PolicyInterface": "nemo_rl.models.policy.interfaces",
    },
    later=LATER.get(__name__, {}),
)
