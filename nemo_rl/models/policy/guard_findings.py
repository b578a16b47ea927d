"""What differs between sent and held weights, and what that usually means.

Compares digests; moves no weights and reads none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from nemo_rl.backends.refit.held import EngineWeights
from nemo_rl.models.policy.canary import CanaryAnswer, Mismatch

Kind = Literal[
    "stale",
    "swapped",
    "differs",
    "missing",
    "torn",
    "packed",
    "unsent",
    "not_finite",
    "canary",
    "rollout",
    "rise",
]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        kind: what kind of thing.
        tensor: Hugging Face name, or the engine's own; empty where none is concerned.
        engine: number of the replica; None where that is not known.
        detail: what was read and what was expected.
    """

    kind: Kind
    tensor: str = ""
    engine: int | None = None
    detail: str = ""

    def __str__(self) -> str:
        where = "" if self.engine is None else f" of engine {self.engine}"
        return f"{self.tensor or self.kind}{where}: {self.detail}"


@dataclass(frozen=True, kw_only=True)
class Transferred:
    """What a transfer of weights left behind.

    Attributes:
        version: of the weights.
        sent: name to the digest, or to digests by dtype (``sent_digests``).
        engines: what each engine holds.
    """

    version: int
    sent: Mapping[str, int | Mapping[str, int]]
    engines: Sequence[EngineWeights] = field(default_factory=tuple)


def digest_findings(
    now: Transferred, earlier: Sequence[Transferred] = ()
) -> list[Finding]:
    """Compare what was sent with what every engine holds.

    Args:
        now: the newest transfer.
        earlier: transfers before it, the newest last; they tell stale from broken.
    """
    findings: list[Finding] = []
    for number, engine in enumerate(now.engines):
        findings += _broken(engine, number)
        findings += _differing(now, engine, number, earlier)
    return findings


def _broken(engine: EngineWeights, number: int) -> list[Finding]:
    found = [
        Finding(
            kind="not_finite",
            tensor=name,
            engine=number,
            detail=f"{count} of its elements are NaN or infinite",
        )
        for name, count in engine.non_finite.items()
    ]
    found += [
        Finding(kind="torn", tensor=name, engine=number, detail=detail)
        for name, detail in engine.torn.items()
    ]
    found += [
        Finding(
            kind="packed",
            tensor=f"{layer}.weight",
            engine=number,
            detail="the kernel's packed matrix is not the weight that was loaded; the "
            "layer computes with an old one",
        )
        for layer in engine.stale
    ]
    found += [
        Finding(
            kind="unsent",
            tensor=name,
            engine=number,
            detail="the engine has this parameter and the trainer did not send it, or "
            "not all of it",
        )
        for name in engine.unsent
    ]
    return found


def _differing(
    now: Transferred,
    engine: EngineWeights,
    number: int,
    earlier: Sequence[Transferred],
) -> list[Finding]:
    findings, wrong = [], {}
    for name in now.sent:
        if name in engine.uncovered or name in engine.torn:
            continue
        if name not in engine.digests:
            detail = "it was sent and the engine holds nothing of it"
            findings.append(
                Finding(kind="missing", tensor=name, engine=number, detail=detail)
            )
            continue
        expected = _sent(now, name, engine)
        if expected is None:
            detail = (
                f"it is held in {engine.rounded.get(name)}, of which the trainer took "
                "no digest"
            )
            findings.append(
                Finding(kind="differs", tensor=name, engine=number, detail=detail)
            )
        elif engine.digests[name] != expected:
            wrong[name] = expected
    for name, expected in wrong.items():
        held = engine.digests[name]
        kind: Kind = "differs"
        detail = f"its bits differ: digest {held:016x}, sent was {expected:016x}"
        if version := _version_of(name, held, engine, earlier):
            kind, detail = "stale", f"the engine still holds it as of {version}"
        other = next((o for o, digest in wrong.items() if digest == held), None)
        if other is not None:
            exchanged = engine.digests[other] == expected
            kind = "swapped"
            detail = f"it holds what was sent as {other}" + (
                ", and the other way round: the two are swapped" if exchanged else ""
            )
        findings.append(Finding(kind=kind, tensor=name, engine=number, detail=detail))
    return findings


def _sent(transfer: Transferred, name: str, engine: EngineWeights) -> int | None:
    """Digest in the dtype in which the engine holds the tensor."""
    digest = transfer.sent.get(name)
    if digest is None or isinstance(digest, int):
        return digest
    held = engine.rounded.get(name)
    return digest.get(held) if held else next(iter(digest.values()))


def _version_of(
    name: str, held: int, engine: EngineWeights, earlier: Sequence[Transferred]
) -> str:
    for transfer in reversed(earlier):
        if _sent(transfer, name, engine) == held:
            return f"version {transfer.version}"
    return ""


_MEANINGS: dict[Kind, tuple[str, str]] = {
    "not_finite": (
        "A weight is NaN or infinite, in the trainer or on the way.",
        "Look at grad_norm and the loss of the last steps; resume from the checkpoint "
        "before they rose, with a smaller learning rate or max_grad_norm set.",
    ),
    "unsent": (
        "The trainer sends fewer tensors than the model of the generator has.",
        "Compare the names with those of the model folder: generator and trainer may "
        "have been given different models.",
    ),
    "missing": (
        "A tensor that was sent did not reach the engine.",
        "Look at the engine's log for 'Failed to load weights'.",
    ),
    "torn": (
        "Ranks of one engine hold slices that do not fit together.",
        "A rank has loaded another rank's slice, or has died and come back: restart "
        "the engines; the first tensor above names the layer.",
    ),
    "packed": (
        "A kernel of the CPU keeps a packed copy of a weight, and that is an old one; "
        "for lm_head: the output layer is tied to the embedding.",
        "repack_tied(model) must run after every reload; report a layer that is no "
        "lm_head.",
    ),
    "swapped": (
        "Two tensors of the same shape are exchanged.",
        "The order or the names of the transfer are wrong; weights converted by a rule "
        "of one's own are the usual reason.",
    ),
    "stale": (
        "The engine has older weights than the trainer.",
        "The transfer did not reach it or it did not load what arrived: look for an "
        "error of the generation worker at this step.",
    ),
    "differs": (
        "Bits were changed on the way or in memory.",
        "One tensor: memory or a rule of the conversion. Many: another dtype or layout "
        "than the trainer's. Run with policy.generation.refit.transport: files to rule "
        "the network out.",
    ),
    "canary": (
        "Weights are equal, or could not be compared, and still the generator gives "
        "other log-probs than the trainer: temperature, top-p or top-k, positions, "
        "the rotary embedding or a kernel differ.",
        "The generator must report log-probs after dividing by the temperature "
        "(vLLM: logprobs_mode processed_logprobs); in low precision raise "
        "policy.generation.guard.canary_tolerance.",
    ),
    "rollout": (
        "The responses of this rollout have other log-probs under the trainer.",
        "The generator's weights or its sampling options are not the trainer's. Where "
        "precision alone is the reason, raise "
        "policy.generation.guard.max_mult_prob_error.",
    ),
    "rise": (
        "The difference between generator and trainer has risen over the run.",
        "Nothing may be wrong yet; look at guard/mult_prob_error and at what changed "
        "at that step.",
    ),
}


def causes(findings: Sequence[Finding]) -> list[str]:
    """What the findings usually mean and what to do, the most telling first."""
    kinds = {finding.kind for finding in findings}
    told = [f"{_MEANINGS[k][0]} {_MEANINGS[k][1]}" for k in _MEANINGS if k in kinds]
    names = {f.tensor for f in findings if f.kind in ("differs", "stale")}
    if names and all("lm_head" in name for name in names):
        told.insert(0, "Only the output layer differs: is it tied to the embedding?")
    return told


def canary_findings(answers: Sequence[CanaryAnswer], tolerance: float) -> list[Finding]:
    """Canaries whose mean log-prob difference is larger than it may be.

    Args:
        answers: of ``run_canary``.
        tolerance: largest mean |difference|.
    """
    findings = []
    for number, answer in enumerate(answers):
        errors = answer.errors
        if errors.not_finite:
            detail = f"{errors.not_finite} of its log-probs are not finite"
            findings.append(
                Finding(kind="canary", tensor=f"canary {number}", detail=detail)
            )
        elif errors.mean_error > tolerance:
            detail = (
                f"mean log-prob difference {errors.mean_error:.3g}, largest "
                f"{errors.max_error:.3g}, may be {tolerance:g}{scale_hint(errors)}"
            )
            findings.append(
                Finding(kind="canary", tensor=f"canary {number}", detail=detail)
            )
    return findings


def scale_hint(errors: Mismatch) -> str:
    """Says so where one side's log-probs are the other's, stretched."""
    if errors.slope == errors.slope and not 0.9 < errors.slope < 1.1:
        return (
            f"; the trainer's log-probs are about {errors.slope:.2g} times the "
            "generator's, as with another temperature"
        )
    return ""
