"""InUse: a section of a configuration that running workers were started with."""

from __future__ import annotations

from typing import Any

from nemo_rl.config.backends import training_backend
from nemo_rl.config.base import BaseConfig
from nemo_rl.config.messages import describe_unknown
from nemo_rl.config.policy import PolicyConfig
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


class SectionsInUse:
    """Sections of a policy as attributes, to be read; ``config`` has them.

    Attributes:
        config: the policy section that the workers were started with.
    """

    config: PolicyConfig

    @property
    def dtensor_cfg(self) -> InUse:
        """The section that the workers were started with; it cannot be changed."""
        return InUse(self.config.dtensor_cfg, "policy.dtensor_cfg")

    @property
    def megatron_cfg(self) -> InUse:
        """The section that the workers were started with; it cannot be changed."""
        return InUse(self.config.megatron_cfg, "policy.megatron_cfg")

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether layers are recomputed in the backward pass; fixed at the start."""
        return self._engine_section().activation_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self._engine_section().activation_checkpointing = value

    @property
    def mixed_precision(self) -> bool:
        """Whether passes run in bfloat16; fixed at the start."""
        return self.config.precision == "bfloat16"

    @mixed_precision.setter
    def mixed_precision(self, value: bool) -> None:
        wanted = "bfloat16" if value else "float32"
        InUse(self.config, "policy").precision = wanted

    def _engine_section(self) -> Any:
        on = training_backend(self.config) == "dtensor"
        return self.dtensor_cfg if on else self.megatron_cfg
