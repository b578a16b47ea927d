"""``python -m nemo_rl.converters``: see ``cli.py``."""

from __future__ import annotations

import sys

from nemo_rl.converters.cli import main

if __name__ == "__main__":
    sys.exit(main())
