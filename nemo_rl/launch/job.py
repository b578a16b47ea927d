"""JobSpec: what a recipe asks of SLURM, checked before it waits in a queue.

Runs on a login node: it reads files and does arithmetic, without torch or Ray.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_rl.api.functional import load_recipe
from nemo_rl.config.cluster import ClusterConfig
from nemo_rl.config.master import MasterConfig
from nemo_rl.config.validation import validate_model_shape
from nemo_rl.launch.site import DEFAULT, LOCAL, Site
from nemo_rl.utils.exceptions import LaunchError
from nemo_rl.utils.imports import import_object
from nemo_rl.utils.suggest import did_you_mean

CPUS_BESIDE = 2
"""CPUs of a shared machine for Ray and the driver, beside the workers'."""
SAVE_SECONDS = 300
"""How long before the time limit SLURM warns the job, to save a checkpoint."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """All that a job script depends on.

    Example: recipes/grpo_llama8b.yaml unchanged is
    ``JobSpec(name="grpo_llama8b", recipe="recipes/grpo_llama8b.yaml", nodes=2,
    gpus_per_node=8, time="04:00:00", title="GRPO, Llama-3.1-8B-Instruct ...")``.
    """

    name: str
    """SLURM's job name, and the name of the folder of its runs."""
    recipe: str
    """Path of the YAML file, relative to the checkout where it lies inside."""
    title: str = ""
    """First comment line of the recipe."""
    nodes: int = 1
    """Machines."""
    gpus_per_node: int = 0
    """GPUs of each; 0 asks for none."""
    cpus_per_node: int | None = None
    """CPUs of each machine, which is shared; None takes whole machines."""
    memory_per_node: str | None = None
    """Memory of each machine where it is shared; None leaves it to the site."""
    time: str = "04:00:00"
    """Time limit."""
    partition: str | None = None
    """SLURM partition; None leaves it to the site."""
    account: str | None = None
    """SLURM account; None leaves it to the site."""
    container: str | None = None
    """Image, used where the site has a container runtime."""
    overrides: tuple[str, ...] = ()
    """ "section.key=value" texts for the driver."""
    site: str = DEFAULT
    """Name of launch/<site>.env."""
    run_dir: str | None = None
    """Folder of the run; None means results/<name>/<job id>."""
    sweep: tuple[tuple[str, ...], ...] = ()
    """Further overrides, one group per task of a job array; () is no array."""
    link: int | None = None
    """Place in a chain of jobs, from 0; such a job is never requeued."""
    after: str | None = None
    """Id of the job that must have ended, in whatever way, before this one begins."""


def find_recipe(text: str | None, root: Path) -> Path:
    """Return the path of a recipe given by path or by name.

    Raises:
        LaunchError: none given, or no such file; lists what there is.
    """
    names = sorted(path.stem for path in (root / "recipes").glob("*.yaml"))
    if not text:
        raise LaunchError(f"which recipe? There are: {', '.join(names)}.")
    for path in (Path(text), root / text, root / "recipes" / f"{text}.yaml"):
        if path.is_file():
            return path.resolve()
    raise LaunchError(
        f"no recipe {text}.{did_you_mean(Path(text).stem, names)} There are: "
        f"{', '.join(names)}."
    )


def make_job(
    recipe: Path,
    overrides: Sequence[str],
    *,
    root: Path,
    site: Site,
    run_dir: Path | None = None,
) -> tuple[JobSpec, MasterConfig]:
    """Read and check a recipe; return the job it asks for and its configuration.

    Args:
        recipe: path of the YAML file.
        overrides: "section.key=value" texts.
        root: the checkout.
        site: the cluster it will run on.
        run_dir: folder of the run, to go on with an earlier one.

    Raises:
        ConfigurationError: a value is wrong, or sizes do not fit the model.
        LaunchError: the job cannot run on the site.
    """
    config = load_recipe(recipe, overrides)
    _check_shape(config)
    cluster = config.cluster
    available = site.gpus_per_node
    if available is not None and cluster.gpus_per_node > available:
        raise LaunchError(
            f"cluster.gpus_per_node={cluster.gpus_per_node}, but a node of site "
            f"{site.name} has {available} GPUs."
        )
    if site.name == LOCAL and cluster.num_nodes > 1:
        raise LaunchError(
            f"cluster.num_nodes={cluster.num_nodes}, but site local is this machine "
            "alone: set cluster.num_nodes=1 (--nodes 1)."
        )
    name = cluster.job_name or recipe.stem
    if not _NAME.fullmatch(name):
        raise LaunchError(
            f"job name {name!r}: use letters, digits, '.', '_' and '-' only; it is "
            "also the name of a folder. Set cluster.job_name."
        )
    inside = recipe.is_relative_to(root)
    return (
        JobSpec(
            name=name,
            recipe=str(recipe.relative_to(root) if inside else recipe),
            title=_title(recipe),
            nodes=cluster.num_nodes + cluster.spare_nodes,
            gpus_per_node=cluster.gpus_per_node,
            cpus_per_node=_shared_cpus(cluster),
            memory_per_node=cluster.memory_per_node,
            time=cluster.time,
            partition=cluster.partition,
            account=cluster.account,
            container=cluster.container,
            overrides=tuple(overrides),
            site=site.name,
            run_dir=str(run_dir.resolve()) if run_dir else None,
        ),
        config,
    )


def _shared_cpus(cluster: ClusterConfig) -> int | None:
    if cluster.exclusive:
        return None
    workers = cluster.workers_per_node * cluster.num_cpus_per_worker
    return cluster.cpus_per_node or workers + CPUS_BESIDE


def _check_shape(config: MasterConfig) -> None:
    """Compare the parallel sizes with the model, if its config.json is at hand."""
    # By name: a model that must be converted first needs torch, finding it does not.
    find = import_object("nemo_rl.infra.assets:find_local_model")
    folder = find(config.policy.model_name)
    if folder is not None and (folder / "config.json").is_file():
        text = (folder / "config.json").read_text(encoding="utf-8")
        validate_model_shape(config.policy, json.loads(text))


def _title(recipe: Path) -> str:
    first = recipe.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").rstrip() if first.startswith("#") else ""
