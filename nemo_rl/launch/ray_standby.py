"""A program: `ray start` whose imports are done before anyone knows its arguments.

Importing Ray takes seconds, more from a shared file system. So every node begins with
it while the nodes are checked; this process then waits for a file with its arguments.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from nemo_rl.utils import env

POLL_S = 0.05


def command(python: str, arguments: Path) -> list[str]:
    """Return the command of the program, as a child of this process.

    Args:
        python: interpreter of the job.
        arguments: file that will hold `arguments`, the words after "ray", and
            `variables` for Ray's daemons, as a JSON object.
    """
    return [
        python,
        "-m",
        "nemo_rl.launch.ray_standby",
        str(arguments),
        str(os.getpid()),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Import Ray, wait, start it and stay with it; ends if its parent does."""
    words = sys.argv[1:] if argv is None else argv
    # Not asked for here: the parent may have ended before this line.
    path, parent = Path(words[0]), int(words[1])
    # By name: the package must stay importable where there is no Ray.
    cli = import_module("ray.scripts.scripts").cli
    while not path.exists():
        if os.getppid() != parent:
            return 1
        time.sleep(POLL_S)
    order = json.loads(path.read_text(encoding="utf-8"))
    env.apply(order["variables"])
    cli.main(args=order["arguments"], prog_name="ray")
    return 0


if __name__ == "__main__":
    sys.exit(main())
