"""Rules between the keys of the loss_fn section."""

import pytest

from nemo_rl.algorithms.grpo.loss_config import ClippedPGLossConfig
from nemo_rl.utils.exceptions import ConfigurationError

CORRECTED = {"use_importance_sampling_correction": True}
BAND = {
    **CORRECTED,
    "truncated_importance_sampling_ratio_min": 0.5,
    "truncated_importance_sampling_ratio": 2.0,
}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sequence_level_importance_ratios": True}, "set token_level_loss to false"),
        ({"constant_response_length": 8}, "set token_level_loss to false"),
        ({"use_cispo": True, "ratio_clip_c": 3.0}, "ratio_clip_c=3.0"),
        (
            {
                "use_cispo": True,
                "token_level_loss": False,
                "sequence_level_importance_ratios": True,
            },
            "sequence_level_importance_ratios=true",
        ),
        ({"truncated_importance_sampling_type": "icepop"}, "correction=false"),
        (
            {**CORRECTED, "truncated_importance_sampling_type": "icepop"},
            "needs both bounds",
        ),
        ({**BAND, "truncated_importance_sampling_ratio_min": 3.0}, "exceeds"),
        (
            {
                **BAND,
                "truncated_importance_sampling_type": "seq-mask-tis",
                "token_level_loss": False,
                "sequence_level_importance_ratios": True,
            },
            "use 'icepop'",
        ),
        ({"truncated_importance_sampling_type": "icpop"}, "Did you mean icepop"),
        (
            {"use_kl_in_reward": True, "force_on_policy_ratio": True},
            "set one of the two to false",
        ),
        (
            {"use_kl_in_reward": True, "reference_policy_kl_penalty": 0},
            "nothing to subtract",
        ),
        ({"ratio_clip_min": 1.5}, "less than or equal to 1"),
        ({"entropy_coef": -0.1}, "greater than or equal to 0"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ClippedPGLossConfig(**fields)


@pytest.mark.parametrize("kind", ["tis", "icepop", "seq-mask-tis", None])
def test_every_way_to_treat_weights_is_accepted_with_its_bounds(kind) -> None:
    config = ClippedPGLossConfig(**BAND, truncated_importance_sampling_type=kind)
    assert config.truncated_importance_sampling_type == kind


def test_entropy_is_wanted_only_where_it_is_asked_for() -> None:
    assert not ClippedPGLossConfig().needs_entropy
    assert ClippedPGLossConfig(log_entropy=True).needs_entropy
    assert ClippedPGLossConfig(entropy_coef=0.01).needs_entropy


def test_the_penalty_is_in_one_place() -> None:
    assert ClippedPGLossConfig().kl_in_loss
    assert not ClippedPGLossConfig(use_kl_in_reward=True).kl_in_loss
    assert not ClippedPGLossConfig(reference_policy_kl_penalty=0).kl_in_loss
