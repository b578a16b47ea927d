"""Where things are and on which cluster: the checkout, and launch/<site>.env.

A site file holds lines KEY=value, read alike by bash and by this module; nothing in
it is executed. What the environment already has wins over the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nemo_rl
from nemo_rl.utils import env
from nemo_rl.utils.exceptions import LaunchError
from nemo_rl.utils.suggest import did_you_mean

LOCAL = "local"
DEFAULT = "generic"
GPUS_PER_NODE = "NEMO_RL_GPUS_PER_NODE"
_LINE = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)=("[^"$`\\]*"|[^\s"\'$`\\]*)')


@dataclass(frozen=True)
class Site:
    """A cluster: its name and its variables, those of the environment laid over."""

    name: str
    variables: Mapping[str, str]

    @property
    def gpus_per_node(self) -> int | None:
        """GPUs a node has; None where the site does not say."""
        text = self.variables.get(GPUS_PER_NODE, "")
        return int(text) if text.isdigit() else None


def root_dir() -> Path:
    """Return the folder that holds slurm/, launch/ and recipes/.

    NEMO_RL_ROOT, else the current folder, else the checkout of this package, else
    the copy that is installed with it.

    Raises:
        LaunchError: NEMO_RL_ROOT names another folder, or there is none.
    """
    named = env.root_dir()
    if named is not None:
        if _is_root(named):
            return named.resolve()
        raise LaunchError(f"NEMO_RL_ROOT={named} holds no slurm/job.sh.")
    package = Path(nemo_rl.__file__).resolve().parent
    for folder in (Path.cwd(), package.parent, package / "_share"):
        if _is_root(folder):
            return folder
    raise LaunchError(
        f"neither {Path.cwd()} nor the installed package holds slurm/job.sh: run from "
        "the checkout or set NEMO_RL_ROOT to it."
    )


def _is_root(folder: Path) -> bool:
    return (folder / "slurm" / "job.sh").is_file()


def default_name() -> str:
    """Return the site of NEMO_RL_SITE, "generic" where it is not set."""
    return env.inherited().get("NEMO_RL_SITE") or DEFAULT


def load_site(name: str, root: Path) -> Site:
    """Read launch/<name>.env.

    Raises:
        LaunchError: there is no such site, or a line is not KEY=value.
    """
    path = root / "launch" / f"{name}.env"
    if not path.is_file():
        sites = sorted(p.stem for p in (root / "launch").glob("*.env"))
        raise LaunchError(
            f"no site {name!r}: {path} does not exist. Sites: {', '.join(sites)}."
            f"{did_you_mean(name, sites)}"
        )
    variables = parse(path.read_text(encoding="utf-8"), str(path))
    inherited = env.inherited()
    own = {key: inherited[key] for key in variables if key in inherited}
    return Site(name, variables | own)


def parse(text: str, source: str) -> dict[str, str]:
    """Return the variables of a site file.

    Raises:
        LaunchError: a line is neither empty, nor a comment, nor KEY=value. Values
            are taken as they are, in double quotes where they hold blanks.
    """
    variables = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise LaunchError(
                f"{source}, line {number}: {line!r} is not KEY=value. Values with "
                "blanks stand in double quotes; $ and ` are not expanded."
            )
        variables[match[1]] = match[2].strip('"')
    return variables
