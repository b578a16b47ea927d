"""The platform seam: what differs between a GPU and a CPU process, decided once."""

from nemo_rl.backends.platform.setup import Platform, setup

__all__ = ["Platform", "setup"]
