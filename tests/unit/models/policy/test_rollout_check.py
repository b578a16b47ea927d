"""Rollouts step by step: the limit, the alarm, and what a resume needs."""

from __future__ import annotations

import math

import numpy as np
import torch

from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.models.policy.rollout_check import RolloutCheck
from tests.unit.models.policy.test_canary import rollout


def scored(shift: float):
    def score(data):
        return BatchedDataDict(
            {"logprobs": torch.full(data["input_ids"].shape, -1.0 - shift)}
        )

    return score


def test_the_limit():
    check = RolloutCheck(4, 1.05)
    findings, metrics = check.run(rollout(), scored(0.04))
    assert findings == [] and metrics["guard/rollout_tokens"] == 12
    assert math.isclose(metrics["guard/mult_prob_error"], math.exp(0.04), rel_tol=1e-6)
    (finding,), metrics = check.run(rollout(), scored(0.06))
    assert finding.kind == "rollout" and "1.062 over 12 tokens" in finding.detail
    assert metrics["guard/gen_kl"] > 0


def test_what_is_not_finite_is_no_number():
    check = RolloutCheck(4, 1.05)
    (finding,), metrics = check.run(rollout(), scored(math.nan))
    assert finding.kind == "rollout" and "12 log-probs of 12" in finding.detail
    assert metrics == {"guard/rollout_tokens": 12.0}


def test_nothing_to_compare_is_no_step():
    check = RolloutCheck(4, 1.05)
    batch = rollout()
    batch["token_versions"] = torch.zeros(6, 8, dtype=torch.int64)
    assert check.run(batch, scored(9.0), version=3) == ([], {})
    assert check.state_dict()["past"] == []


def test_a_rise_below_the_limit_is_noticed_also_after_a_resume():
    draw = np.random.default_rng(0)
    check = RolloutCheck(4, 1.05)
    for _ in range(60):
        usual = 1e-4 * math.exp(0.2 * draw.standard_normal())
        assert check.run(rollout(), scored(usual))[0] == []
    resumed = RolloutCheck(4, 1.05)
    resumed.load_state_dict(check.state_dict())
    found = [resumed.run(rollout(), scored(1e-2))[0] for _ in range(6)]
    (alarm,) = [finding for findings in found for finding in findings]
    assert alarm.kind == "rise" and "it used to be 0.0001" in alarm.detail
