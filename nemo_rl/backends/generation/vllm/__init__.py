"""Known by name: the vLLM engine, which is not in this version.

Importing from here says what to use instead; it knows no engine.
"""

from nemo_rl._aliases import LATER
from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {}, later=LATER[__name__])
