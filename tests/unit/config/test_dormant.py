"""Sections that must stay switched off: read, checked, and off by default."""

import pytest

from nemo_rl.config import dormant
from nemo_rl.config.base import BaseConfig
from nemo_rl.utils.exceptions import ConfigurationError

SECTIONS = [
    value
    for value in vars(dormant).values()
    if isinstance(value, type)
    and issubclass(value, BaseConfig)
    and value.__module__ == dormant.__name__
]


@pytest.mark.parametrize("section", SECTIONS)
def test_off_by_default_and_cannot_be_switched_on(section: type[BaseConfig]) -> None:
    config = section()
    assert config["enabled"] is False
    with pytest.raises(ConfigurationError, match="enabled=True is not available"):
        section(enabled=True)


@pytest.mark.parametrize("section", SECTIONS)
def test_misspelt_keys_are_still_found(section: type[BaseConfig]) -> None:
    with pytest.raises(ConfigurationError, match="Did you mean enabled?"):
        section(enabeld=False)
