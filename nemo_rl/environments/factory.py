"""make_environment: from a function, the env section or the dataset to an environment.

First that says something wins: ``fit(reward_fn=...)``, ``env.reward_fn``, ``env.name``,
the dataset's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_rl.config.environment import EnvConfig
from nemo_rl.environments.exact_match import exact_match
from nemo_rl.environments.functional_reward import FunctionalRewardWrapper
from nemo_rl.environments.interfaces import EnvironmentInterface
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.imports import import_object
from nemo_rl.utils.suggest import did_you_mean

_BUILT_IN = {"exact_match": exact_match}


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
        reward_fn: Function, environment, or environment class given in code.
        default: What the dataset names: one of the built-in names, or as
            ``reward_fn``.
        search_dir: Folder of the recipe, where ``env.reward_fn`` is looked for first.

    Raises:
        ConfigurationError: Nothing scores the run, or a name is unknown.
    """
    if not isinstance(config, EnvConfig):
        config = EnvConfig.from_mapping(config or {})
    if reward_fn is None and config.reward_fn is not None:
        reward_fn = import_object(config.reward_fn, search_dir=search_dir)
        return as_environment(reward_fn, config, name=config.reward_fn)
    if reward_fn is not None:
        return as_environment(reward_fn, config)
    chosen = config.name or ("math" if config.math is not None else default)
    if chosen is None:
        raise ConfigurationError(
            "Nothing scores the responses: pass reward_fn= to fit() or train(), or set "
            "env.reward_fn to 'module:function', or env.name to one of "
            f"{', '.join(_BUILT_IN)}."
        )
    if not isinstance(chosen, str):
        return as_environment(chosen, config)
    if chosen not in _BUILT_IN:
        raise ConfigurationError(
            f"env.name={chosen!r} is no environment of this version. Known: "
            f"{', '.join(_BUILT_IN)}; or set env.reward_fn to 'module:function'."
            f"{did_you_mean(chosen, _BUILT_IN)}"
        )
    return as_environment(_BUILT_IN[chosen], config)


def as_environment(
    thing: Any, config: EnvConfig, *, name: str | None = None
) -> EnvironmentInterface:
    """Return an environment as it is, construct a class, wrap a function."""
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
