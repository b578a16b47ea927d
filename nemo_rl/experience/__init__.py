"""Experience: prompts become scored completions, and a record of them."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "RolloutEngine": "nemo_rl.experience.rollout",
        "RolloutRecorder": "nemo_rl.experience.recorder",
        "rollout_rows": "nemo_rl.experience.recorder",
    },
)
