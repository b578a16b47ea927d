"""How weights move: what is chosen, and what is refused with what to use."""

from __future__ import annotations

import pytest

from nemo_rl.config.refit import RefitConfig
from nemo_rl.models.policy.transport import choose_transport
from nemo_rl.utils.exceptions import ConfigurationError

KEY = "policy.generation.refit.transport"


@pytest.mark.parametrize(
    ("wanted", "colocated", "gpus", "one_host", "chosen"),
    [
        ("auto", True, True, True, "ipc"),
        ("auto", True, True, False, "gloo"),
        ("auto", False, True, True, "nccl"),
        ("auto", False, True, False, "nccl"),
        ("auto", True, False, True, "gloo"),
        ("auto", False, False, False, "gloo"),
        ("ipc", False, False, True, "ipc"),
        ("files", False, True, False, "files"),
        ("gloo", False, True, False, "gloo"),
        ("nccl", False, True, False, "nccl"),
    ],
)
def test_transport(wanted, colocated, gpus, one_host, chosen):
    config = RefitConfig(transport=wanted)
    found = choose_transport(
        config, colocated=colocated, use_gpus=gpus, same_host=one_host
    )
    assert found == chosen


@pytest.mark.parametrize(
    ("wanted", "colocated", "gpus", "one_host", "instead"),
    [
        ("nccl", False, False, True, "gloo"),
        ("nccl", True, True, True, "ipc"),
        ("nccl", True, True, False, "gloo"),
        ("ipc", False, True, False, "nccl"),
        ("ipc", True, True, False, "gloo"),
    ],
)
def test_a_transport_that_cannot_work_names_one_that_can(
    wanted, colocated, gpus, one_host, instead
):
    config = RefitConfig(transport=wanted)
    with pytest.raises(ConfigurationError, match=f"{KEY} is {wanted}.*to {instead}"):
        choose_transport(config, colocated=colocated, use_gpus=gpus, same_host=one_host)
