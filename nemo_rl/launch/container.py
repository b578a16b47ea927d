"""Is the container of a site there? Image and mounts, before a job waits for them.

`slurm/container.sh` turns the same variables into options of srun. Images of a
registry are not asked for: a login node may not reach it.
"""

from __future__ import annotations

import os
from pathlib import Path

from nemo_rl.launch.site import Site
from nemo_rl.utils import env
from nemo_rl.utils.exceptions import LaunchError

RUNTIME = "NEMO_RL_CONTAINER_RUNTIME"
IMAGE = "NEMO_RL_CONTAINER"
MOUNTS = "NEMO_RL_CONTAINER_MOUNTS"
RUNTIMES = ("none", "pyxis", "apptainer")
CACHES = ("NEMO_RL_CACHE", "HF_HOME")
"""Variables of folders that are mounted where they are set."""
_FILES = (".sqsh", ".squashfs", ".sif")


def image_of(site: Site, container: str | None) -> str | None:
    """Return the image a job would use: the variable, else cluster.container.

    None where the site runs without containers.

    Raises:
        LaunchError: no such container runtime.
    """
    runtime = _variable(site, RUNTIME) or "none"
    if runtime not in RUNTIMES:
        raise LaunchError(
            f"{RUNTIME}={runtime} of site {site.name} is none of: "
            f"{', '.join(RUNTIMES)}."
        )
    return None if runtime == "none" else _variable(site, IMAGE) or container


def image_file(image: str, root: Path) -> Path | None:
    """Return the file of an image, None for a name of a registry."""
    local = image.endswith(_FILES) or image.startswith(("/", "./", "../"))
    return root / image if local else None


def check_container(site: Site, container: str | None, root: Path) -> None:
    """Check that image and mounts exist and can be read from here.

    Args:
        site: has the variables of launch/<site>.env.
        container: cluster.container of the recipe.
        root: the checkout, where relative paths begin.

    Raises:
        LaunchError: no image is given, or a path is not there or not readable.
    """
    runtime = _variable(site, RUNTIME) or "none"
    image = image_of(site, container)
    if runtime == "none":
        return
    if not image:
        raise LaunchError(
            f"site {site.name} runs jobs in {runtime} containers, but no image is "
            f"given: set cluster.container or {IMAGE}."
        )
    file = image_file(image, root)
    if file is not None:
        _readable(file, f"container image {image}", "containers/README.md says how")
    for mount in filter(None, (_variable(site, MOUNTS) or "").split(",")):
        source, colon, rest = mount.partition(":")
        target = rest.partition(":")[0]
        if not (colon and source.startswith("/") and target.startswith("/")):
            raise LaunchError(
                f"{MOUNTS} of site {site.name}: {mount!r} is not from:to with absolute "
                "paths."
            )
        _readable(Path(source), f"mount {mount}", f"or take it out of {MOUNTS}")
    for name in CACHES:
        if folder := _variable(site, name):
            _readable(Path(folder), f"{name}, which is mounted", f"or change {name}")


def _readable(path: Path, what: str, cure: str) -> None:
    if not path.exists():
        raise LaunchError(f"{what}: {path} does not exist. Make it ({cure}).")
    mode = os.R_OK | (os.X_OK if path.is_dir() else 0)
    if not os.access(path, mode):
        raise LaunchError(f"{what}: {path} cannot be read by you.")


def _variable(site: Site, name: str) -> str | None:
    return env.inherited().get(name) or site.variables.get(name) or None
