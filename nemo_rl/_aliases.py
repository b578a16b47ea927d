"""Second names: the complete table of documented names that live elsewhere.

An alias module is one docstring and `__getattr__ = forward(__name__)`. The library
itself imports only from the canonical places.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

ALIASES: dict[str, dict[str, str]] = {
    "nemo_rl.algorithms.rollout": {
        "RolloutEngine": "nemo_rl.experience.rollout:RolloutEngine",
    },
    "nemo_rl.config.training": {
        "DPOConfig": "nemo_rl.algorithms.dpo.config:DPOConfig",
        "GRPOConfig": "nemo_rl.algorithms.grpo.config:GRPOConfig",
        "SFTConfig": "nemo_rl.algorithms.sft.config:SFTConfig",
    },
    "nemo_rl.models.interfaces": {
        "PolicyInterface": "nemo_rl.models.policy.interfaces:PolicyInterface",
    },
    "nemo_rl.utils.config": {
        "Config": "nemo_rl.config.base:BaseConfig",
        "load_config": "nemo_rl.config.loading:load_recipe_mapping",
    },
    "nemo_rl.utils.logger": {
        "Logger": "nemo_rl.infra.logging:LoggerFacade",
        "setup_logger": "nemo_rl.infra.logging:setup_logger",
    },
}
"""Alias module -> second name -> "canonical.module:name"."""


def forward(module: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of an alias module.

    Raises:
        KeyError: the module is not in the table.
    """
    names = ALIASES[module]

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        target, _, attribute = names[name].partition(":")
        return getattr(import_module(target), attribute)

    return __getattr__
