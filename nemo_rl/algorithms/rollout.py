"""Second name of nemo_rl.experience.rollout."""

from nemo_rl._aliases import forward

__getattr__ = forward(__name__)
