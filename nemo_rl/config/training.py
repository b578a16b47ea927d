"""Second names of the algorithms' config classes."""

from nemo_rl._aliases import forward

__getattr__ = forward(__name__)
