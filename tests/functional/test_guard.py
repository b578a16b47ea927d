"""Faults of a transfer, injected into a real engine: each is caught, and named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from nemo_rl.backends.generation.vllm import cpu_weights
from nemo_rl.config.refit import GuardConfig
from nemo_rl.models.policy.guard import Guard
from nemo_rl.utils.exceptions import ConsistencyError
from tests.functional.guarded import Pair, Weights, tiny_folder

DOWN = "model.layers.1.mlp.down_proj.weight"
KEY, OTHER_KEY = (f"model.layers.{n}.self_attn.k_proj.weight" for n in (0, 1))
OUT = "model.layers.0.self_attn.o_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"
BIAS = "model.layers.1.self_attn.q_proj.bias"

TABLE: list[tuple[str, str, str, float]] = []
"""Fault, caught by, what the message named, seconds of the check."""


@pytest.fixture(scope="module", autouse=True)
def table(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("\n| fault | caught by | named | seconds |\n|---|---|---|---|")
        for fault, caught, named, seconds in TABLE:
            print(f"| {fault} | {caught} | {named} | {seconds:.3f} |")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(tiny_folder(tmp_path_factory.mktemp("m") / "m", "qwen2"))
    yield pair
    pair.engine.shutdown()


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tiny_folder(tmp_path_factory.mktemp("m") / "m", "qwen3", tied=True)
    pair = Pair(folder)
    yield pair
    pair.engine.shutdown()


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """An engine that reports log-probs of before the temperature."""
    folder = tiny_folder(tmp_path_factory.mktemp("m") / "m", "llama")
    pair = Pair(folder, logprobs_mode="raw_logprobs")
    yield pair
    pair.engine.shutdown()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two processes; a kv head that both have, experts, a vocabulary to pad."""
    folder = tmp_path_factory.mktemp("m") / "m"
    tiny_folder(folder, "qwen3_moe-mixed", kv_heads=1)
    extension = "tests.functional.faulty_extension.FaultyExtension"
    pair = Pair(folder, tensor_parallel=2, worker_extension_cls=extension)
    yield pair
    pair.engine.shutdown()


def make_guard(tmp_path: Path, action: str = "halt", **fields: Any) -> Guard:
    config = GuardConfig.from_mapping({"action": action, **fields})
    return Guard(
        config,
        log_dir=tmp_path,
        vocab_size=131,
        special_ids=(0, 1, 2),
        run_config={"policy": {"model_name": "tiny"}, "api_key": "hush"},
    )


def check(guard: Guard, pair: Pair, transferred: Any, step: int = 12, **kw: Any) -> Any:
    return guard.after_refit(
        step=step,
        generate=pair.generate,
        score=pair.score,
        transferred=transferred,
        **kw,
    )


def healthy(guard: Guard, pair: Pair, refits: int = 2) -> None:
    """Clean transfers: nothing may be found."""
    for step in range(refits):
        pair.learn()
        metrics = check(guard, pair, pair.refit(), step)
        assert metrics["guard/digest_mismatches"] == 0
        assert metrics["guard/digest_uncovered"] == 0
        assert metrics["guard/digest_tensors"] > 20
        assert metrics["guard/canary_error_max"] < 1e-4
        outcome = guard.before_update(
            pair.rollout(), step=step, score=pair.score, version=pair.version
        )
        assert outcome.usable and not outcome.findings
        assert outcome.metrics["guard/mult_prob_error"] == pytest.approx(1, abs=1e-4)


@contextmanager
def caught(fault: str, by: str, named: str, also: str = "") -> Iterator[None]:
    begin = time.perf_counter()
    with pytest.raises(ConsistencyError, match="disagree") as raised:
        yield
    TABLE.append((fault, by, named, time.perf_counter() - begin))
    assert also in str(raised.value)
    folder = Path(str(raised.value).rpartition("Report: ")[2])
    assert {f.name for f in folder.iterdir()} == {
        *("report.md", "config.yaml", "tensors.json", "canary.json")
    }
    assert named in str(raised.value)
    assert named in (folder / "report.md").read_text()
    assert "hush" not in (folder / "config.yaml").read_text()


def flipped(weights: Weights) -> Weights:
    weights[DOWN].view(torch.int32)[3, 5] ^= 1
    return weights


def swapped(weights: Weights) -> Weights:
    weights[KEY], weights[OTHER_KEY] = weights[OTHER_KEY], weights[KEY]
    return weights


def slices_in_another_order(weights: Weights) -> Weights:
    left, right = weights[OUT].chunk(2, dim=1)
    weights[OUT] = torch.cat([right, left], dim=1)
    return weights


def without_one(weights: Weights) -> Weights:
    del weights[DOWN]
    return weights


def zeros_of_the_other_sign(weights: Weights) -> Weights:
    weights[BIAS][0] = -0.0
    return weights


IN_TRANSIT = {
    "one flipped bit": (flipped, DOWN),
    "two tensors swapped": (swapped, KEY),
    "slices of ranks in another order": (slices_in_another_order, OUT),
    "a tensor that does not arrive": (without_one, DOWN),
    "a zero of the other sign": (zeros_of_the_other_sign, BIAS),
}


@pytest.mark.parametrize("fault", IN_TRANSIT)
def test_what_changes_on_the_way_is_named(pair: Pair, tmp_path: Path, fault: str):
    change, name = IN_TRANSIT[fault]
    guard = make_guard(tmp_path)
    healthy(guard, pair)
    pair.learn()
    if change is zeros_of_the_other_sign:
        with torch.no_grad():
            dict(pair.trainer.named_parameters())[BIAS][0] = 0.0
    transferred = pair.refit(change)
    with caught(fault, "digests", name):
        check(guard, pair, transferred)
    kinds = {f.kind for f in guard.check_digests(transferred.sent, transferred.engines)}
    expected = {swapped: {"swapped"}, without_one: {"stale"}}
    assert kinds == expected.get(change, {"differs"})


def test_a_skipped_transfer_is_recognised_as_old_weights(pair: Pair, tmp_path: Path):
    guard = make_guard(tmp_path)
    healthy(guard, pair)
    before = pair.version
    pair.learn()
    transferred = pair.refit(skip=True)
    first, detail = next(iter(transferred.sent)), f"holds it as of version {before}"
    with caught("stale weights", "digests", first, also=detail):
        check(guard, pair, transferred)
    findings = guard.check_digests(transferred.sent, transferred.engines)
    assert len(findings) == len(transferred.sent)
    assert {f.kind for f in findings} == {"stale"}


def test_what_the_trainer_does_not_send_is_named(pair: Pair, tmp_path: Path):
    guard = make_guard(tmp_path)
    transferred = pair.refit(planned=without_one)
    with caught("a tensor that is not sent", "digests", DOWN):
        check(guard, pair, transferred)


def test_a_weight_that_is_not_finite_is_named(pair: Pair, tmp_path: Path):
    guard = make_guard(tmp_path)
    weight = dict(pair.trainer.named_parameters())[DOWN]
    kept = weight[0, 0].item()
    with torch.no_grad():
        weight[0, 0] = torch.nan
    with caught("a NaN", "digests", DOWN):
        check(guard, pair, pair.refit())
    with torch.no_grad():
        weight[0, 0] = kept
    healthy(guard, pair)


def test_an_output_layer_that_keeps_its_old_matrix_is_named(
    tied: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    guard = make_guard(tmp_path)
    healthy(guard, tied)
    tied.learn()
    with monkeypatch.context() as patched:
        patched.setattr(cpu_weights, "repack_tied", lambda model: 0)
        transferred = tied.refit()
    assert not guard.check_digests(transferred.sent, ())
    with caught("an old tied output layer", "probe", "lm_head.weight"):
        check(guard, tied, transferred)
    healthy(guard, tied)


def test_without_digests_the_canaries_notice_old_weights(pair: Pair, tmp_path: Path):
    guard = make_guard(tmp_path, digests=False)
    healthy(make_guard(tmp_path), pair)
    pair.learn(0.05)
    with caught("stale weights, no digests", "canary", "canary 0"):
        check(guard, pair, None)
    check(guard, pair, pair.refit())


def test_without_both_the_rollout_is_refused(pair: Pair, tmp_path: Path):
    guard = make_guard(tmp_path, digests=False, canary_prompts=0)
    healthy(make_guard(tmp_path), pair)
    pair.learn(0.05)
    batch = pair.rollout()
    with caught("stale weights, no digests or canary", "rollout", "rollout"):
        guard.before_update(batch, step=12, score=pair.score)
    assert guard.check_rollout(batch, pair.score, version=pair.version + 1) == []


def test_another_temperature_is_told_from_other_weights(early: Pair, tmp_path: Path):
    guard = make_guard(tmp_path)
    transferred = early.refit()
    assert guard.check_digests(transferred.sent, transferred.engines) == []
    fault = "log-probs before the temperature"
    with caught(fault, "canary", "canary 0", also="another temperature"):
        check(guard, early, transferred)


def test_weights_are_sent_again_and_the_run_goes_on(pair: Pair, tmp_path: Path):
    guard = make_guard(tmp_path, action="resync")
    healthy(guard, pair)
    pair.learn()
    metrics = check(guard, pair, pair.refit(flipped), resync=pair.refit)
    assert metrics["guard/digest_mismatches"] == 1 and metrics["guard/resyncs"] == 1
    report = tmp_path / "guard" / "step_000012" / "report.md"
    assert DOWN in report.read_text() and "sent once more" in report.read_text()
    healthy(guard, pair)
    pair.learn()
    with caught("a fault that a second transfer repeats", "digests", DOWN):
        check(guard, pair, pair.refit(flipped), resync=lambda: pair.refit(flipped))
    assert (tmp_path / "guard" / "step_000012_3" / "report.md").is_file()


def test_a_rollout_of_old_weights_is_sampled_anew(pair: Pair, tmp_path: Path):
    guard = make_guard(tmp_path, action="resync")
    healthy(guard, pair)
    pair.learn(0.05)
    old = pair.rollout()
    again: dict[str, Callable[..., Any]] = {
        "score": pair.score,
        "generate": pair.generate,
        "resync": pair.refit,
    }
    outcome = guard.before_update(old, step=7, **again)
    assert not outcome.usable and [f.kind for f in outcome.findings] == ["rollout"]
    outcome = guard.before_update(pair.rollout(), step=7, **again)
    assert outcome.usable
    assert not guard.before_update(old, step=8, **again).usable
    with caught("rollouts that differ twice in a row", "rollout", "rollout"):
        guard.before_update(old, step=8, **again)


def test_a_guard_that_only_warns_never_stops_the_run(pair: Pair, tmp_path: Path):
    guard = make_guard(tmp_path, action="warn")
    for step in range(12):
        metrics = check(guard, pair, pair.refit(flipped), step)
        assert metrics["guard/digest_mismatches"] == 1
    assert len(list((tmp_path / "guard").iterdir())) == 10


def test_a_rank_with_another_ranks_slice_is_named(ranks: Pair, tmp_path: Path):
    guard = make_guard(tmp_path)
    healthy(guard, ranks)
    ranks.learn()
    sent = ranks.refit().sent
    ranks.engine._engine.rpc("take_slice_of_first", OUT)
    with caught("a wrong tensor-parallel slice", "digests", OUT):
        check(guard, ranks, ranks.read_back(sent))
    healthy(guard, ranks)


def test_a_copy_that_differs_between_ranks_is_named(ranks: Pair, tmp_path: Path):
    guard = make_guard(tmp_path)
    sent = ranks.refit().sent
    ranks.engine._engine.rpc("flip_on_last", NORM)
    with caught("a copy on one rank", "digests", NORM, also="rank 1 holds other bits"):
        check(guard, ranks, ranks.read_back(sent))
    healthy(guard, ranks)
