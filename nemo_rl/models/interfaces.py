"""Second name of nemo_rl.models.policy.interfaces."""

from nemo_rl._aliases import forward

__getattr__ = forward(__name__)
