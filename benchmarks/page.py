"""docs/performance.md, where benchmarks write what they measured."""

from __future__ import annotations

import platform
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def put(name: str, title: str, section: str) -> None:
    """Put a section between its markers in the page, at the end if it is new.

    Args:
        name: in the markers.
        title: heading of a new section.
        section: Markdown.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    text = PAGE.read_text() if PAGE.exists() else "# Performance\n"
    if begin not in text:
        text = f"{text.rstrip()}\n\n## {title}\n\n{begin}\n{end}\n"
    head, _, rest = text.partition(begin)
    tail = rest.partition(end)[2]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(f"{head}{begin}\n{section}\n{end}{tail}")


def cpu_model() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
