"""The policy: one handle for training, log-probs and generation."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "HuggingFacePolicy": "nemo_rl.models.policy.by_keywords",
        "MegatronPolicy": "nemo_rl.models.policy.by_keywords",
        "PairedPolicy": "nemo_rl.models.policy.paired",
        "Policy": "nemo_rl.models.policy.lm_policy",
        "PolicyInterface": "nemo_rl.models.policy.interfaces",
    },
)
