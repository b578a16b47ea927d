"""Digests that differ: stale, swapped, missing or broken, and what each means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nemo_rl.backends.refit.held import EngineWeights
from nemo_rl.models.policy.canary import CanaryAnswer, Mismatch
from nemo_rl.models.policy.guard_findings import (
    Finding,
    Transferred,
    canary_findings,
    causes,
    digest_findings,
    scale_hint,
)

SENT = {"a": 1, "b": 2, "c": 3, "d": 3}
OLD = Transferred(version=6, sent={"a": 11, "b": 12, "c": 3, "d": 14})
OLDER = Transferred(version=5, sent={"a": 21, "b": 22, "c": 3, "d": 24})


def found(*engines: dict[str, int], **fields: Any) -> list[Finding]:
    held = [EngineWeights(digests=digests, **fields) for digests in engines]
    now = Transferred(version=7, sent=SENT, engines=held)
    return digest_findings(now, (OLDER, OLD))


def brief(findings: list[Finding]) -> list[tuple[str, str, int | None]]:
    return [(f.kind, f.tensor, f.engine) for f in findings]


def test_equal_digests_are_no_finding():
    assert found(SENT, dict(SENT)) == []


def test_one_engine_of_two_is_named():
    (finding,) = found(SENT, SENT | {"b": 9})
    assert brief([finding]) == [("differs", "b", 1)]
    assert "digest 0000000000000009, sent was 0000000000000002" in finding.detail
    assert str(finding).startswith("b of engine 1: its bits differ")


def test_old_weights_are_told_by_their_version():
    findings = found(dict(OLD.sent))
    # c did not change between the two, so it cannot be stale.
    assert brief(findings) == [("stale", name, 0) for name in "abd"]
    assert {f.detail for f in findings} == {"the engine still holds it as of version 6"}
    assert found(SENT | {"a": 21})[0].detail.endswith("version 5")


def test_exchanged_tensors_are_told():
    one, two = found(SENT | {"a": 2, "b": 1})
    assert brief([one, two]) == [("swapped", "a", 0), ("swapped", "b", 0)]
    assert one.detail.startswith("it holds what was sent as b, and the other way")
    copied, other = found(SENT | {"a": 2, "b": 99})
    assert copied.kind == "swapped" and copied.detail.endswith("sent as b")
    assert brief([other]) == [("differs", "b", 0)]


def test_what_was_not_received_or_cannot_be_read():
    without = {name: SENT[name] for name in "abc"}
    assert brief(found(without)) == [("missing", "d", 0)]
    assert found(without, uncovered={"d": "held in fp8"}) == []


def test_what_is_broken_is_told_apart():
    findings = found(
        SENT,
        torn={"a": "rank 1 holds other bits"},
        stale=["lm_head"],
        non_finite={"b": 2},
        unsent=["x.weight"],
    )
    assert brief(findings) == [
        ("not_finite", "b", 0),
        ("torn", "a", 0),
        ("packed", "lm_head.weight", 0),
        ("unsent", "x.weight", 0),
    ]
    assert all(causes([finding]) for finding in findings)


def test_a_vector_is_compared_in_the_dtype_it_is_held_in():
    sent = {"norm": {"float32": 1, "bfloat16": 2}}
    narrow = EngineWeights(digests={"norm": 2}, rounded={"norm": "bfloat16"})
    wide = EngineWeights(digests={"norm": 1})
    now = Transferred(version=1, sent=sent, engines=[narrow, wide])
    assert digest_findings(now) == []
    wrong = replace(now, engines=[EngineWeights(digests={"norm": 2}), wide])
    assert brief(digest_findings(wrong)) == [("differs", "norm", 0)]
    # A dtype that no digest was taken for is a difference and no error.
    other = EngineWeights(digests={"norm": 2}, rounded={"norm": "float16"})
    assert len(digest_findings(replace(now, engines=[other]))) == 1


def test_only_the_output_layer_is_a_hint():
    head = Finding(kind="differs", tensor="lm_head.weight")
    assert "tied to the embedding" in causes([head])[0]
    both = [head, Finding(kind="differs", tensor="model.norm.weight")]
    assert "tied" not in causes(both)[0]


def answer(**fields: Any) -> CanaryAnswer:
    errors = {
        "tokens": 4,
        "mean_error": 1e-5,
        "max_error": 1e-4,
        "mult_prob_error": 1.0,
        "gen_kl": 0.0,
        "slope": 1.0,
        "not_finite": 0,
    }
    return CanaryAnswer(
        prompt_ids=[1],
        token_ids=[2],
        generator=[-1.0],
        trainer=[-1.0],
        errors=Mismatch(**{**errors, **fields}),
    )


def test_canaries_beyond_the_tolerance():
    answers = [answer(), answer(mean_error=0.1), answer(not_finite=1)]
    one, two = canary_findings(answers, 1e-3)
    assert brief([one, two]) == [("canary", f"canary {n}", None) for n in (1, 2)]
    assert "may be 0.001" in one.detail and "1 of its log-probs" in two.detail
    assert canary_findings(answers[:2], 0.2) == []


@pytest.mark.parametrize(("slope", "told"), [(1.4, True), (1.02, False), (0.7, True)])
def test_a_stretched_scale_is_told(slope: float, told: bool):
    assert ("another temperature" in scale_hint(answer(slope=slope).errors)) is told
    assert scale_hint(answer(slope=float("nan")).errors) == ""
