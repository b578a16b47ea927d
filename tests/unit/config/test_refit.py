"""policy.generation.refit and .guard: what is read and what is refused."""

from __future__ import annotations

import pytest

from nemo_rl.config.generation import GenerationConfig
from nemo_rl.utils.exceptions import ConfigurationError


def test_sections_belong_to_generation():
    given = {"refit": {"bucket_mib": 8}, "guard": {"action": "halt"}}
    config = GenerationConfig.from_mapping(given)
    assert (config.refit.transport, config.refit.bucket_mib) == ("auto", 8)
    assert config.guard.enabled and config.guard.action == "halt"


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("refit", {"transport": "carrier pigeon"}),
        ("refit", {"bucket_mib": 0}),
        ("refit", {"timeout_s": 0}),
        ("guard", {"action": "shrug"}),
        ("guard", {"max_mult_prob_error": 1.0}),
        ("guard", {"canary_tolerance": 0.0}),
    ],
)
def test_refused_with_its_key(section, value):
    [name] = value
    with pytest.raises(ConfigurationError, match=f"{section}.{name}"):
        GenerationConfig.from_mapping({section: value})
