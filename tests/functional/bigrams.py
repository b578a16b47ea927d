"""The engines of docs/backends.md as a module, made of the page's own code."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"


def write_module(folder: Path) -> Path:
    """Write ``bigrams.py`` into a folder; the page's last block of Python."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    (folder / "bigrams.py").write_text(blocks[-1])
    return folder
