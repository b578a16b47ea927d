"""Handles on the driver: policies and generators that own groups of workers."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "HuggingFacePolicy": "nemo_rl.models.policy.by_keywords",
        "MegatronPolicy": "nemo_rl.models.policy.by_keywords",
        "PolicyInterface": "nemo_rl.models.policy.interfaces",
    },
)
