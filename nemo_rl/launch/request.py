"""What a user asks for, checked before anything is submitted: jobs and their script.

The command line and `nemo_rl.launch.submit` share it. It reads files and renders; it
asks no scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from nemo_rl.config.master import MasterConfig
from nemo_rl.launch import site as sites
from nemo_rl.launch.container import check_container
from nemo_rl.launch.job import JobSpec, find_recipe, make_job
from nemo_rl.launch.site import LOCAL, Site
from nemo_rl.launch.sweep import combinations, fits_an_array, parse_nodes
from nemo_rl.utils.exceptions import LaunchError
from nemo_rl.utils.secrets import masked_overrides


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Jobs that could be submitted."""

    root: Path
    """The checkout."""
    recipe: Path
    """The recipe's file."""
    site: Site
    """Where they will run."""
    overrides: tuple[str, ...]
    """Changes to the recipe, without those of the sweep."""
    specs: tuple[JobSpec, ...]
    """One job, which may be an array; or one per combination of a sweep."""
    config: MasterConfig
    """Configuration of the first job."""
    groups: tuple[tuple[str, ...], ...] = ()
    """Overrides of each combination of the sweep."""
    chain: int = 0
    """Successors of the job, each starting when the one before it has ended."""

    @property
    def first(self) -> JobSpec:
        """The first job; of a chain, its first link."""
        return replace(self.specs[0], link=0) if self.chain else self.specs[0]

    def check_container(self) -> None:
        """Raise LaunchError where image or mounts are not there."""
        check_container(self.site, self.first.container, self.root)


def prepare(
    recipe: str | Path | None,
    *,
    overrides: Sequence[str] | Mapping[str, object] = (),
    nodes: int | str | None = None,
    time: str | None = None,
    site: str | None = None,
    chain: int = 0,
    sweep: Sequence[str] | Mapping[str, Sequence[object]] = (),
    run_dir: Path | None = None,
) -> Prepared:
    """Check a recipe with its changes, every combination of a sweep included.

    Args:
        recipe: name or path.
        overrides: "section.key=value" texts, or a mapping of keys to values.
        nodes: cluster.num_nodes; "16+2" also sets two cluster.spare_nodes.
        time: cluster.time.
        site: name of a launch/<site>.env; NEMO_RL_SITE or "generic" when None.
        chain: how many successors the job gets.
        sweep: "key=a,b,c" texts, or a mapping of keys to their values.
        run_dir: folder of the run, to go on with an earlier one.

    Raises:
        ConfigurationError: a value is wrong, or sizes do not fit the model.
        LaunchError: there is no such recipe or site, it cannot run there, or an
            override holds a secret.
    """
    root = sites.root_dir()
    path = find_recipe(str(recipe) if recipe else None, root)
    place = sites.load_site(site or sites.default_name(), root)
    texts = as_texts(overrides)
    if nodes is not None:
        texts += parse_nodes(nodes)
    if time is not None:
        texts.append(f'cluster.time="{time}"')
    groups = combinations(_sweep_texts(sweep))
    _check_combination(place, chain, groups, run_dir)
    if place.name != LOCAL:
        _refuse_secrets([*texts, *(text for group in groups for text in group)])
    made = [
        make_job(path, [*texts, *group], root=root, site=place, run_dir=run_dir)
        for group in groups or [()]
    ]
    specs = [spec for spec, _ in made]
    if groups and fits_an_array(groups):
        specs = [replace(specs[0], overrides=tuple(texts), sweep=groups)]
    return Prepared(
        root=root,
        recipe=path,
        site=place,
        overrides=tuple(texts),
        specs=tuple(specs),
        config=made[0][1],
        groups=groups,
        chain=chain,
    )


def as_texts(overrides: Sequence[str] | Mapping[str, object]) -> list[str]:
    """Return overrides as texts of the command line.

    Example:
        >>> as_texts({"grpo.seed": 3, "policy.model_name": "x"})
        ['grpo.seed=3', 'policy.model_name=x']
    """
    if not isinstance(overrides, Mapping):
        return list(overrides)
    return [f"{key}={_as_yaml(value)}" for key, value in overrides.items()]


def _sweep_texts(sweep: Sequence[str] | Mapping[str, Sequence[object]]) -> list[str]:
    if not isinstance(sweep, Mapping):
        return list(sweep)
    return [f"{k}={','.join(map(_as_yaml, values))}" for k, values in sweep.items()]


def _as_yaml(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")


def _refuse_secrets(texts: Sequence[str]) -> None:
    """A job script is kept by SLURM and in the run folder, and others may read both."""
    keys = {
        text.partition("=")[0] for text in texts if masked_overrides([text]) != [text]
    }
    if keys:
        raise LaunchError(
            f"{', '.join(sorted(keys))}: a secret in an override would stand in the "
            "job script. Take it out and export it in your shell, as HF_TOKEN, "
            "WANDB_API_KEY or the variable that the recipe names "
            "(env.llm_judge.api_key_env): jobs inherit the environment they are "
            "submitted from."
        )


def _check_combination(
    place: Site, chain: int, groups: Sequence[Sequence[str]], run_dir: Path | None
) -> None:
    if chain < 0:
        raise LaunchError(f"--chain {chain}: expected how many jobs follow the first.")
    if groups and chain:
        raise LaunchError(
            "--sweep and --chain do not go together: submit a chain for each value."
        )
    if groups and run_dir:
        raise LaunchError(
            "--sweep and --run-dir do not go together: each combination has a run "
            "folder of its own."
        )
    if place.name == LOCAL and (groups or chain):
        raise LaunchError(
            "--sweep and --chain need SLURM, and site local has none: leave them out "
            "or choose another --site."
        )
