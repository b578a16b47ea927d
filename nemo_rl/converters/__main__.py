"""``python -m nemo_rl.converters``: see ``cli/parser.py``."""

from __future__ import annotations

import sys

from nemo_rl.converters.cli.parser import main

if __name__ == "__main__":
    sys.exit(main())
