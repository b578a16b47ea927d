"""``python -m nemo_rl.evals``: see ``cli.py``."""

from __future__ import annotations

import sys

from nemo_rl.evals.cli import main

if __name__ == "__main__":
    sys.exit(main())
