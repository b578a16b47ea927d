"""Options of the source of rollouts; which policies can generate while they train."""

from __future__ import annotations

import pytest

from nemo_rl.algorithms.grpo.ahead import let_run_ahead, options
from nemo_rl.algorithms.grpo.async_config import AsyncGRPOConfig
from nemo_rl.experience.schedule import AheadOptions
from nemo_rl.models.policy.paired import PairedPolicy
from nemo_rl.utils.exceptions import ConfigurationError
from tests.fakes.policies import OneWordPolicy
from tests.fakes.tables import TableGenerator, TablePolicy


def test_every_key_arrives() -> None:
    config = AsyncGRPOConfig(
        max_staleness_steps=3,
        in_flight_weight_updates=True,
        over_sampling=1.25,
        sort_by_length=False,
    )
    assert options(config) == AheadOptions(
        max_staleness=3, in_flight=True, over_sampling=1.25, sort_by_length=False
    )
    assert options(AsyncGRPOConfig(deterministic=True)).deterministic
    assert options(config).under_way(8) == 10


def test_a_policy_that_shares_its_weights_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="OneWordPolicy generates with the"):
        let_run_ahead(OneWordPolicy([7]), AsyncGRPOConfig(enabled=True))


def test_single_requests_need_a_stream() -> None:
    paired = PairedPolicy(TablePolicy(5), TableGenerator(4))
    assert paired.stream is paired.generator
    config = AsyncGRPOConfig(in_flight_weight_updates=True, over_sampling=1.5)
    let_run_ahead(paired, config)
    paired.stream = None
    with pytest.raises(ConfigurationError, match="in_flight_weight_updates=true needs"):
        let_run_ahead(paired, config)
    let_run_ahead(paired, AsyncGRPOConfig())
