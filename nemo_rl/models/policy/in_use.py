"""InUse: a section of a configuration that running workers were started with."""

from __future__ import annotations

from typing import Any

from nemo_rl.config.base import BaseConfig
from nemo_rl.config.messages import describe_unknown
from nemo_rl.utils.exceptions import ConfigurationError


class InUse:
    """Reads like the section; to change a field is an error that names its key.

    Args:
        section: what the workers were started with.
        key: where it stands in a recipe.
    """

    def __init__(self, section: BaseConfig, key: str) -> None:
        object.__setattr__(self, "_section", section)
        object.__setattr__(self, "_key", key)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_section"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Accept what is so already.

        Raises:
            ConfigurationError: a field that does not exist, or another value.
        """
        section = object.__getattribute__(self, "_section")
        key = object.__getattribute__(self, "_key")
        if name not in section:
            raise ConfigurationError(
                describe_unknown(type(section), name, prefix=f"{key}.")
            )
        if section[name] != value:
            raise ConfigurationError(
                f"{key}.{name} is {section[name]!r} and the workers of this policy are "
                f"running: set it to {value!r} in the configuration that the policy is "
                "made from."
            )
