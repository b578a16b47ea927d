"""make_environment: from a function, the env section or the dataset to an environment.

First that says something wins: ``fit(reward_fn=...)``, ``env.reward_fn``, ``env.name``,
a section of env such as ``env.math``, the dataset's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nemo_rl.config.base import merge
from nemo_rl.config.environment import EnvConfig, weighted_section
from nemo_rl.environments.functional_reward import FunctionalRewardWrapper
from nemo_rl.environments.gym_environment import GymEnvironment, takes_one_action
from nemo_rl.environments.interfaces import EnvironmentInterface
from nemo_rl.environments.parallel import ParallelEnvironment
from nemo_rl.environments.task_environments import DEFAULT, TaskEnvironments
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.imports import import_object
from nemo_rl.utils.suggest import did_you_mean

_BUILT_IN: dict[str, str] = {
    "exact_match": "exact_match:exact_match",
    "math": "math_environment:MathEnvironment",
    "reasoning_gym": "reasoning_gym_environment:ReasoningGymEnvironment",
    "sliding_puzzle": "sliding_puzzle:SlidingPuzzleEnvironment",
    "code": "code_environment:CodeEnvironment",
    "reward_model": "reward_model:RewardModelEnvironment",
    "llm_judge": "llm_judge:LLMJudgeEnvironment",
}
"""Name -> module of this package and object; a class takes its section of env."""
_OWN_PROCESS = {"reward_model"}
"""Environments that are too large for the driver's process."""


def make_environment(
    config: EnvConfig | Mapping[str, Any] | None = None,
    *,
    reward_fn: Any = None,
    default: Any = None,
    search_dir: Path | str | None = None,
) -> EnvironmentInterface:
    """Return the environment that scores a run.

    Args:
        config: The env section.
        reward_fn: Function, environment, environment class, or a dictionary of them
            by task_name, given in code.
        default: What the dataset names: one of the built-in names, or as
            ``reward_fn``.
        search_dir: Folder of the recipe, where ``env.reward_fn`` is looked for first.

    Raises:
        ConfigurationError: Nothing scores the run, or a name is unknown.
    """
    if not isinstance(config, EnvConfig):
        config = EnvConfig.from_mapping(config or {})
    chosen = reward_fn
    if chosen is None:
        chosen = config.reward_fn or config.chosen or default
    if chosen is None:
        raise ConfigurationError(
            "Nothing scores the responses: pass reward_fn= to fit() or train(), or set "
            "env.reward_fn to 'module:function', or env.name to one of "
            f"{', '.join(_BUILT_IN)}."
        )
    if reward_fn is None and config.reward_fn is None and not config.name:
        combined = _combined(config, default, search_dir)
        if combined is not None:
            return combined
    given = reward_fn is not None or not isinstance(chosen, str)
    build = partial(
        _build,
        config,
        given=chosen if given else None,
        default=default,
        search_dir=None if search_dir is None else Path(search_dir),
    )
    workers = config.num_workers
    if workers is None:
        workers = 1 if not given and chosen in _OWN_PROCESS else 0
    if not workers:
        _check_unused(config, "num_workers is 0: the environment runs in the driver")
        return build()
    name = chosen if isinstance(chosen, str) else getattr(chosen, "__name__", None)
    return ParallelEnvironment(
        build,
        name=f"the environment {name or type(chosen).__name__}",
        num_workers=workers,
        timeout_s=config.timeout_s,
        gpus_per_worker=config.gpus_per_worker,
    )


def as_environment(
    thing: Any, config: EnvConfig, *, name: str | None = None
) -> EnvironmentInterface:
    """Return an environment as it is, construct a class, wrap what else can score."""
    if isinstance(thing, Mapping):
        return TaskEnvironments(
            {task: as_environment(one, config) for task, one in thing.items()}
        )
    if hasattr(thing, "step") and takes_one_action(thing):
        return GymEnvironment(thing, config.kwargs)
    if isinstance(thing, EnvironmentInterface):
        return thing
    if isinstance(thing, type):
        if not hasattr(thing, "step"):
            raise ConfigurationError(
                f"{thing.__name__} is a class without step(); give a function of "
                "(prompt, response) or a subclass of EnvironmentInterface."
            )
        return thing(config.kwargs) if config.kwargs else thing()
    if hasattr(thing, "step"):
        return thing
    return FunctionalRewardWrapper(
        thing, name=name, batched=config.batched, kwargs=config.kwargs
    )


def _build(
    config: EnvConfig, *, given: Any, default: Any, search_dir: Path | None
) -> EnvironmentInterface:
    """Construct the environment; called in every process that has one."""
    if given is not None:
        return as_environment(given, config)
    if config.reward_fn is not None:
        found = import_object(config.reward_fn, search_dir=search_dir)
        return as_environment(found, config, name=config.reward_fn)
    chosen = config.chosen or default
    name = chosen.partition(":")[0]
    if name not in _BUILT_IN:
        raise ConfigurationError(
            f"env.name={chosen!r} is no environment of this version. Known: "
            f"{', '.join(_BUILT_IN)}; or set env.reward_fn to 'module:function'."
            f"{did_you_mean(name, _BUILT_IN)}"
        )
    found = import_object(f"nemo_rl.environments.{_BUILT_IN[name]}")
    if not isinstance(found, type):
        return as_environment(found, config, name=name)
    section = getattr(config, name)
    return found(merge(section.to_dict() if section else {}, config.kwargs))


def _check_unused(config: EnvConfig, why: str) -> None:
    """Refuse settings of worker processes where there are none."""
    for name in ("timeout_s", "gpus_per_worker"):
        value = getattr(config, name)
        if value:
            raise ConfigurationError(
                f"env.{name}={value:g} would have no effect: {why}."
            )


def _combined(
    config: EnvConfig, default: Any, search_dir: Path | str | None
) -> EnvironmentInterface | None:
    """Return the environment of several, if the section has several."""
    if config.tasks or config.multi_reward:
        if config.num_workers is not None:
            raise ConfigurationError(
                f"env.num_workers={config.num_workers} stands beside several "
                "environments; give it in the section of one of them."
            )
        _check_unused(config, "it belongs in the section of one of the environments")
    if config.tasks:
        parts: dict[str, Any] = dict(config.tasks)
        environments = {
            task: make_environment(section, search_dir=search_dir)
            for task, section in parts.items()
        }
        if default is not None and DEFAULT not in environments:
            environments[DEFAULT] = make_environment(
                default=default, search_dir=search_dir
            )
        return TaskEnvironments(environments)
    if config.multi_reward:
        from nemo_rl.environments.multi_reward import MultiRewardEnvironment

        weighted = {}
        for name, part in config.multi_reward.items():
            section, weight = weighted_section(part)
            inner = make_environment(section, default=default, search_dir=search_dir)
            weighted[name] = (inner, weight)
        return MultiRewardEnvironment(weighted)
    return None
