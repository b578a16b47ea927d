"""Second names of nemo_rl.config."""

from nemo_rl._aliases import forward

__getattr__ = forward(__name__)
