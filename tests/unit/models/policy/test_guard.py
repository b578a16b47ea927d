"""Guard: when it looks, what it asks for, and what it tells; faults are functional."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_rl.backends.refit.held import EngineWeights
from nemo_rl.config.refit import GuardConfig
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.models import HuggingFacePolicy
from nemo_rl.models.generation import HuggingFaceGeneration
from nemo_rl.models.policy import PairedPolicy
from nemo_rl.models.policy.guard import Guard
from nemo_rl.models.policy.guard_findings import Transferred
from nemo_rl.utils.exceptions import ConsistencyError, TrainingError, WorkerError
from tests.fakes import models
from tests.functional.ranks import run_ranks
from tests.unit.models.policy.test_canary import rollout
from tests.unit.models.policy.test_rollout_check import scored


def make(tmp_path: Path, precision: str = "float32", **fields: Any) -> Guard:
    config = GuardConfig.from_mapping({"action": "halt", **fields})
    return Guard(config, log_dir=tmp_path, precision=precision, vocab_size=40)


def transferred(held: int = 1, version: int = 3, **fields: Any) -> Transferred:
    engine = EngineWeights(digests={"w": held}, **fields)
    return Transferred(version=version, sent={"w": 1}, engines=[engine])


def generate(data: BatchedDataDict) -> BatchedDataDict:
    ids = torch.cat([data["input_ids"], torch.ones(data.size, 4).long()], dim=1)
    return BatchedDataDict(
        {
            "output_ids": ids,
            "unpadded_sequence_lengths": data["input_lengths"] + 4,
            "logprobs": -torch.ones(ids.shape),
        }
    )


def never(*_: Any) -> Any:
    pytest.fail("was asked for")


def test_a_clean_transfer_gives_numbers(tmp_path: Path):
    metrics = make(tmp_path).after_refit(
        step=1, generate=generate, score=scored(1e-4), transferred=transferred()
    )
    assert metrics.pop("guard_s") >= 0
    assert metrics.pop("guard/canary_error_mean") == pytest.approx(1e-4, rel=1e-2)
    assert metrics.pop("guard/canary_error_max") == pytest.approx(1e-4, rel=1e-2)
    assert metrics == {
        "guard/digest_tensors": 1.0,
        "guard/digest_uncovered": 0.0,
        "guard/digest_mismatches": 0.0,
        "guard/resyncs": 0.0,
    }
    assert not (tmp_path / "guard").exists()


def test_a_guard_that_is_off_asks_for_nothing(tmp_path: Path):
    guard = make(tmp_path, enabled=False)
    assert guard.after_refit(step=1, generate=never, score=never) == {}
    assert guard.before_update(rollout(), step=1, score=never).usable
    guard = make(tmp_path, canary_prompts=0, rollout_rows=0)
    assert "guard_s" in guard.after_refit(step=1, generate=never, score=never)
    assert guard.before_update(rollout(), step=1, score=never).metrics == {}


def test_digests_may_be_left_out(tmp_path: Path):
    guard, wrong = make(tmp_path, digests=False), transferred(held=2)
    guard.after_refit(step=1, generate=generate, score=scored(0), transferred=wrong)
    with pytest.raises(ConsistencyError, match="w of engine 0: its bits differ"):
        make(tmp_path).after_refit(
            step=1, generate=generate, score=scored(0), transferred=wrong
        )


@pytest.mark.parametrize(
    ("precision", "fields", "allowed"),
    [
        ("float32", {}, 1e-3),
        ("bfloat16", {}, 0.2),
        ("float32", {"canary_tolerance": 0.05}, 0.05),
    ],
)
def test_the_tolerance(tmp_path: Path, precision: str, fields: Any, allowed: float):
    guard = make(tmp_path, precision, **fields)
    guard.after_refit(step=1, generate=generate, score=scored(0.9 * allowed))
    with pytest.raises(ConsistencyError, match=f"may be {allowed:g}"):
        guard.after_refit(step=1, generate=generate, score=scored(1.2 * allowed))


def test_weights_that_are_not_finite_are_not_sampled_with(tmp_path: Path):
    with pytest.raises(ConsistencyError, match="2 of its elements are NaN"):
        make(tmp_path).after_refit(
            step=1,
            generate=never,
            score=never,
            transferred=transferred(non_finite={"w": 2}),
        )


def test_a_generator_that_fails_is_a_finding_and_one_that_died_is_not(tmp_path: Path):
    def broken(data):
        raise TrainingError("log-probs that are not finite")

    def dead(data):
        raise WorkerError("rank 0 died")

    guard = make(tmp_path)
    with pytest.raises(ConsistencyError, match="canary: log-probs that are not finite"):
        guard.after_refit(step=1, generate=broken, score=never)
    with pytest.raises(WorkerError, match="rank 0 died"):
        guard.after_refit(step=1, generate=dead, score=never)


def test_old_digests_are_remembered(tmp_path: Path):
    guard = make(tmp_path, canary_prompts=0)
    for version in range(5):
        engine = EngineWeights(digests={"w": 100 + version})
        now = Transferred(version=version, sent=engine.digests, engines=[engine])
        guard.after_refit(step=version, generate=never, score=never, transferred=now)
    old = [EngineWeights(digests={"w": 102}), EngineWeights(digests={"w": 100})]
    stale, forgotten = guard.check_digests({"w": 105}, old, version=5)
    assert stale.kind == "stale" and stale.detail.endswith("version 2")
    assert forgotten.kind == "differs"


def test_a_second_transfer_is_looked_at_again(tmp_path: Path):
    guard = make(tmp_path, action="resync")
    metrics = guard.after_refit(
        step=1,
        generate=generate,
        score=scored(0),
        transferred=transferred(held=2),
        resync=transferred,
    )
    assert metrics["guard/resyncs"] == 1 and metrics["guard/digest_mismatches"] == 1
    with pytest.raises(ConsistencyError, match="w of engine 0"):
        guard.after_refit(
            step=2,
            generate=generate,
            score=scored(0),
            transferred=transferred(held=2),
            resync=lambda: transferred(held=2),
        )


def test_a_bad_rollout_is_not_used_and_two_in_a_row_halt(tmp_path: Path):
    guard = make(tmp_path, action="resync")
    sent: list[int] = []

    def resync():
        sent.append(1)
        return transferred()

    def judge(shift: float):
        # The generator itself is sound: its canaries agree after the transfer.
        def score(data):
            canary = "token_mask" not in data and data["input_ids"].shape[1] > 8
            return scored(0.0 if canary else shift)(data)

        return guard.before_update(
            rollout(), step=4, score=score, generate=generate, resync=resync
        )

    assert judge(0.0).usable and not sent
    assert not judge(1.0).usable and len(sent) == 1
    assert judge(0.0).usable
    assert not judge(1.0).usable and len(sent) == 2
    with pytest.raises(ConsistencyError, match="mean exp"):
        judge(1.0)
    assert len(sent) == 2


def test_warning_of_a_bad_rollout_uses_it(tmp_path: Path):
    guard = make(tmp_path, action="warn")
    outcome = guard.before_update(rollout(), step=4, score=scored(1.0))
    assert outcome.usable and outcome.findings[0].kind == "rollout"
    assert outcome.metrics["guard/mult_prob_error"] == pytest.approx(math.e)


def test_a_rise_alone_never_halts_and_survives_a_resume(tmp_path: Path):
    first, guard = make(tmp_path), make(tmp_path)
    for step in range(40):
        shift = 1e-4 * (1 + 0.1 * (step % 5))
        first.before_update(rollout(), step=step, score=scored(shift))
    guard.load_state_dict(first.state_dict())
    kinds = []
    for step in range(40, 50):
        outcome = guard.before_update(rollout(), step=step, score=scored(1e-2))
        assert outcome.usable
        kinds += [finding.kind for finding in outcome.findings]
    assert kinds == ["rise"] and len(list((tmp_path / "guard").iterdir())) == 1


def test_reports_go_where_they_are_told(tmp_path: Path):
    guard = make(tmp_path / "first", canary_prompts=0)
    guard.report_to(tmp_path / "second", {"policy": {"model_name": "m"}})
    with pytest.raises(ConsistencyError, match="second"):
        guard.after_refit(
            step=1, generate=never, score=never, transferred=transferred(held=2)
        )
    (config,) = (tmp_path / "second").glob("guard/*/config.yaml")
    assert "model_name: m" in config.read_text()
    assert not (tmp_path / "first").exists()


def _plain_pair(_, folder: str, logs: str):
    """A generator that knows nothing of digests, through the same guard."""
    model = str(models.save(Path(folder), "llama", layers=2))
    common = {"torch_dtype": "float32", "max_total_sequence_length": 24}
    generator = HuggingFaceGeneration(
        model, max_new_tokens=8, temperature=0.7, **common
    )
    learner = HuggingFacePolicy(model, generation={"temperature": 0.7}, **common)
    pair = PairedPolicy(learner, generator)
    config = GuardConfig.from_mapping({"action": "halt", "canary_tokens": 6})
    guard = Guard(config, log_dir=logs, vocab_size=131, max_length=24)
    asked = {"generate": pair.generate, "score": pair.get_logprobs}
    clean = guard.after_refit(step=1, **asked)
    weights = {name: w * 1.05 for name, w in learner.export_weights().items()}
    generator.update_weights(weights)
    try:
        guard.after_refit(step=2, **asked)
    except ConsistencyError as error:
        return clean, str(error)
    return clean, ""


def test_a_generator_without_digests_is_checked_by_its_answers(tmp_path: Path):
    folders = str(tmp_path / "m"), str(tmp_path / "logs")
    ((clean, message),) = run_ranks(_plain_pair, 1, *folders)
    assert clean["guard/canary_error_max"] < 1e-4
    assert "guard/digest_tensors" not in clean
    assert "canary 0: mean log-prob difference" in message
