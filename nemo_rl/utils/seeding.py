"""Seeds: one number for a run, and independent numbers derived from it."""

from __future__ import annotations

import hashlib
import random
import sys


def derive_seed(seed: int, *parts: object) -> int:
    """Return a seed for one purpose, the same in every process and every run.

    Args:
        seed: the run's seed.
        *parts: what the seed is for, such as "shuffle", 3 (an epoch). Compared by
            their text; no two different lists of parts collide by concatenation.

    Returns:
        An integer in [0, 2**63).
    """
    text = "\x1f".join([str(int(seed)), *(f"{len(str(p))}:{p}" for p in parts)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and, where it is already imported, torch (every device).

    torch is not imported for it: a process without torch has nothing to seed there.
    """
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(seed)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(seed)
