"""Second names of nemo_rl.infra.logging."""

from nemo_rl._aliases import forward

__getattr__ = forward(__name__)
