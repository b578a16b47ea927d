"""Reward environments: from a plain function to a full environment."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "EnvironmentInterface": "nemo_rl.environments.interfaces",
        "EnvironmentReturn": "nemo_rl.environments.interfaces",
        "FunctionalRewardWrapper": "nemo_rl.environments.functional_reward",
        "make_environment": "nemo_rl.environments.factory",
    },
)
