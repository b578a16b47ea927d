"""Real vLLM on a CPU: what it samples, when it stops, and whose weights those are."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers
from safetensors.torch import save_file

from nemo_rl.backends.generation.base import GenerationRequest, GenerationResult
from nemo_rl.backends.generation.vllm.settings import VllmSettings
from nemo_rl.infra.assets import resolve_model
from nemo_rl.utils.exceptions import (
    ConfigurationError,
    DataError,
    RefitError,
    TrainingError,
    WorkerDied,
)
from tests.fakes import models
from tests.fakes.tokenizers import character_tokenizer
from tests.functional.engine_process import EngineProcess
from tests.functional.guarded import tiny_folder

LONGEST = 256
STOPS = tuple(range(40, 60))
LONG = {"max_new_tokens": 200}
PROMPT = [5, 17, 60, 42, 99, 7, 33]


def start(folder: Path | str, **settings: Any) -> EngineProcess:
    given = {"dtype": "float32", "max_model_len": LONGEST, "load_format": "auto"}
    given |= {"more": {"max_num_seqs": 4}, "kv_bytes_per_token": 4096}
    return EngineProcess(VllmSettings(model=str(folder), **{**given, **settings}))


def request(name: str, prompt: Sequence[int] = PROMPT, **fields: Any) -> Any:
    given = {"seed": 11, "max_new_tokens": 12, **fields}
    return GenerationRequest(id=name, prompt_ids=list(prompt), **given)


def answers(backend: Any, requests: Sequence[Any]) -> dict[str, GenerationResult]:
    backend.submit(requests)
    return collected(backend, len(requests))


def collected(backend: Any, count: int) -> dict[str, GenerationResult]:
    found: dict[str, GenerationResult] = {}
    until = time.monotonic() + 60
    while len(found) < count:
        assert time.monotonic() < until, f"only {list(found)} came"
        for result in backend.collect(1.0):
            assert result.id not in found
            found[result.id] = result
    return found


def under_way(backend: Any, *requests: Any) -> None:
    """Start them, and return when the first of them have a few tokens."""
    backend.submit([request("first", max_new_tokens=4), *requests])
    assert list(collected(backend, 1)) == ["first"]


def answer(backend: Any, *args: Any, **fields: Any) -> GenerationResult:
    return answers(backend, [request("one", *args, **fields)])["one"]


@torch.no_grad()
def scores(
    model: Any, result: GenerationResult, prompt: Sequence[int] = PROMPT, t: float = 1.0
) -> torch.Tensor:
    """Log-probs of a response under a Hugging Face model."""
    ids = torch.tensor([[*prompt, *result.token_ids]])
    logprobs = (model(ids).logits[0, len(prompt) - 1 : -1] / t).log_softmax(-1)
    return logprobs.gather(-1, ids[0, len(prompt) :, None])[:, 0]


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()


@torch.no_grad()
def move(model: Any, seed: int) -> Any:
    """Change every weight, as an update does."""
    draw = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight += 0.05 * torch.randn(weight.shape, generator=draw)
    return model


def moved(folder: Path) -> Any:
    return move(loaded(folder), 1)


def furthest(model: Any, result: GenerationResult, *args: Any, **kwargs: Any) -> float:
    exact = scores(model, result, *args, **kwargs)
    return (exact - torch.tensor(result.logprobs)).abs().max().item()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return character_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("m") / "m"
    tiny_folder(folder, "llama", vocab=len(tokenizer))
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return loaded(folder)


@pytest.fixture(scope="module")
def backend(folder: Path) -> Iterator[EngineProcess]:
    with start(folder, with_tokenizer=True) as backend:
        yield backend


@pytest.fixture
def restored(backend: EngineProcess, model: Any) -> Iterator[EngineProcess]:
    """For tests that replace the weights."""
    yield backend
    backend.update_weights(model.state_dict(), version=0)


EVERY_RUN = (("qwen3", True),)
"""An engine's start takes seconds, so the others are slow."""


@pytest.mark.parametrize(
    ("family", "tied"),
    [
        pytest.param(
            *case,
            id=f"{case[0]}-{'tied' if case[1] else 'untied'}",
            marks=() if case in EVERY_RUN else pytest.mark.slow,
        )
        for case in product(models.FAMILIES, (False, True))
    ],
)
def test_logprobs_are_the_trainers_after_every_update(
    tmp_path: Path, family: str, tied: bool
):
    folder = tiny_folder(tmp_path / "m", family, tied=tied)
    model = loaded(folder)
    with start(folder, load_format="dummy", temperature=0.7) as backend:
        with pytest.raises(TrainingError, match="random weights"):
            backend.submit([request("a")])
        for version in (1, 2, 3):
            backend.update_weights(model.state_dict(), version)
            found = answers(backend, [request(f"{s}", seed=s) for s in range(3)])
            for result in found.values():
                assert furthest(model, result, t=0.7) < 1e-4
                assert result.versions == [version] * 12
            move(model, version)


def test_a_response_ends_with_the_first_stop_token(filtered: EngineProcess):
    found = answers(filtered, [request(f"{s}", seed=s) for s in range(12)])
    ended = [r for r in found.values() if r.finish_reason == "stop"]
    assert ended and len(ended) < len(found)
    for result in found.values():
        tokens = result.token_ids
        assert not set(tokens[:-1]) & set(STOPS)
        assert (tokens[-1] in STOPS) == (result.finish_reason == "stop")
        assert len(tokens) == len(result.logprobs) == len(result.versions)
        assert result.finish_reason == "stop" or len(tokens) == 12


def test_a_response_ends_with_the_stop_string_of_its_row(
    backend: EngineProcess, tokenizer: Any
):
    seeds = range(4)
    whole = answers(backend, [request(f"{s}", seed=s) for s in seeds])
    texts = {name: tokenizer.decode(r.token_ids) for name, r in whole.items()}
    assert all(len(text) >= 4 for text in texts.values())
    found = answers(
        backend,
        [
            request(f"{s}", seed=s, stop_strings=(texts[f"{s}"][1:3], "no such"))
            for s in seeds
        ],
    )
    for name, result in found.items():
        assert result.finish_reason == "stop"
        assert result.token_ids == whole[name].token_ids[: len(result.token_ids)]
        assert texts[name][1:3] in tokenizer.decode(result.token_ids)
        assert texts[name][1:3] not in tokenizer.decode(result.token_ids[:-1])


def test_samples_depend_on_the_seed_alone(backend: EngineProcess, folder: Path):
    prompts = [[s + 3, *PROMPT[: s % 4 + 1]] for s in range(8)]
    rows = [request(f"{s}", p, seed=s) for s, p in enumerate(prompts)]
    together = answers(backend, rows)
    alone = answers(backend, [rows[5]])["5"]
    assert alone.token_ids == together["5"].token_ids
    assert alone.logprobs == pytest.approx(together["5"].logprobs, abs=1e-5)
    assert answer(backend, seed=1).token_ids != answer(backend, seed=2).token_ids
    with start(folder, seed=99) as other:
        found = answers(other, rows[::-1])
    assert all(found[n].token_ids == r.token_ids for n, r in together.items())


@pytest.mark.parametrize("seed", [-1, 2**63 - 1, 2**63 + 5, 2**64 + 7])
def test_any_integer_is_a_seed(backend: EngineProcess, seed: int):
    assert answer(backend, seed=seed) == answer(backend, seed=seed)


def test_greedy_rows_stand_beside_sampled_ones(backend: EngineProcess, model: Any):
    rows = [request(f"{s}", seed=s, greedy=s % 2 == 0) for s in range(4)]
    found = answers(backend, rows)
    assert found["0"].token_ids == found["2"].token_ids
    assert found["1"].token_ids != found["3"].token_ids
    ids = torch.tensor([PROMPT])
    for token in found["0"].token_ids:
        assert model(ids).logits[0, -1].argmax() == token
        ids = torch.cat([ids, torch.tensor([[token]])], 1)
    assert max(furthest(model, result) for result in found.values()) < 1e-4


def test_responses_end_where_the_engine_is_full(backend: EngineProcess):
    prompt = [3 + i % 90 for i in range(LONGEST - 3)]
    result = answer(backend, prompt, max_new_tokens=50, seed=4)
    assert (len(result.token_ids), result.finish_reason) == (3, "length")
    assert answer(backend, max_new_tokens=0).finish_reason == "length"


def test_what_was_begun_elsewhere_goes_on_as_one_response(
    backend: EngineProcess, model: Any
):
    whole = answer(backend, greedy=True)
    begun = whole.token_ids[:5]
    rest = answer(backend, greedy=True, begun_ids=begun)
    assert begun + rest.token_ids == whole.token_ids
    assert rest.logprobs == pytest.approx(whole.logprobs[5:], abs=1e-5)
    sampled = answer(backend, begun_ids=begun)
    assert sampled == answer(backend, begun_ids=begun)
    assert furthest(model, sampled, [*PROMPT, *begun]) < 1e-4
    assert 5 + len(sampled.token_ids) <= 12
    for complete, reason in ((whole.token_ids, "length"), ([9] * 12, "length")):
        result = answer(backend, begun_ids=complete)
        assert (result.token_ids, result.finish_reason) == ([], reason)


def test_an_aborted_response_is_a_beginning_of_the_whole(backend: EngineProcess):
    long = {"max_new_tokens": 200, "seed": 4}
    whole = answer(backend, **long)
    assert len(whole.token_ids) == 200
    under_way(backend, *(request(name, **long) for name in ("a", "b")))
    [part] = backend.abort(["a", "unknown", "a"])
    assert part.finish_reason == "abort"
    assert part.token_ids == whole.token_ids[: len(part.token_ids)]
    assert 0 < len(part.logprobs) == len(part.versions) == len(part.token_ids) < 200
    assert collected(backend, 1)["b"].token_ids == whole.token_ids
    assert backend.abort(["a", "b"]) == [] and backend.collect(0.1) == []


def test_what_cannot_be_answered_is_refused_and_leaves_nothing(
    backend: EngineProcess, filtered: EngineProcess
):
    with pytest.raises(ConfigurationError, match="skip_tokenizer_init"):
        filtered.submit([request("x", stop_strings=("a",))])
    for wrong, error, text in (
        (request("x", []), DataError, "no token"),
        (request("x", [3] * LONGEST), ConfigurationError, "at least 257"),
        (request("ok"), TrainingError, "two requests that run have the id 'ok'"),
    ):
        with pytest.raises(error, match=text):
            backend.submit([request("ok"), wrong])
        assert backend.collect(0.05) == []
    backend.submit([request("ok", max_new_tokens=40)])
    with pytest.raises(TrainingError, match="two requests"):
        backend.submit([request("ok")])
    assert collected(backend, 1)
    backend.submit([])


def test_every_token_has_the_version_that_sampled_it(
    restored: EngineProcess, folder: Path, model: Any
):
    newer, rows = moved(folder), [request(f"{s}", seed=s, **LONG) for s in range(8)]
    # Four run at once: the others have no token when the weights change.
    under_way(restored, *rows)
    restored.update_weights(newer.state_dict(), version=3)
    found = collected(restored, 8)
    both = [r for r in found.values() if set(r.versions) == {0, 3}]
    fresh = [r for r in found.values() if set(r.versions) == {3}]
    assert both and fresh
    for result in found.values():
        assert result.versions == sorted(result.versions)
        at = result.versions.count(0)
        old, new = scores(model, result), scores(newer, result)
        got = torch.tensor(result.logprobs)
        assert torch.allclose(got[:at], old[:at], atol=1e-4)
        # Later tokens of a response that had begun still see its old cache.
        assert at or torch.allclose(got, new, atol=1e-4)
    assert furthest(newer, answer(restored)) < 1e-4


def test_with_recomputed_caches_later_tokens_are_of_the_new_weights_alone(
    restored: EngineProcess, folder: Path
):
    newer, files = moved(folder), folder.parent / "newer"
    newer.save_pretrained(files)
    under_way(restored, request("a", seed=4, **LONG))
    restored.update("nemo_rl_load_files", str(files), version=3, recompute=True)
    result = collected(restored, 1)["a"]
    at = result.versions.count(0)
    assert 0 < at < 200
    exact = scores(newer, result)[at:]
    assert torch.allclose(torch.tensor(result.logprobs)[at:], exact, atol=1e-4)


def test_nothing_is_sampled_from_half_of_the_weights(
    restored: EngineProcess, folder: Path, model: Any, tmp_path: Path
):
    half_an_update(restored, model, tmp_path)
    restored.submit([request("a")])
    assert restored.collect(0.3) == []
    newer = moved(folder)
    restored.update_weights(newer.state_dict(), version=9)
    result = collected(restored, 1)["a"]
    assert set(result.versions) == {9} and furthest(newer, result) < 1e-4


def half_an_update(backend: EngineProcess, model: Any, tmp_path: Path) -> None:
    """An update without some weights, and one that ends in the middle of layers."""
    weights = {name: 2 * w for name, w in model.state_dict().items()}
    with pytest.raises(RefitError, match="k_proj|qkv_proj"):
        backend.update_weights({n: w for n, w in weights.items() if "k_proj" not in n})
    half = {n: w for n, w in weights.items() if "q_proj" in n or "embed" in n}
    save_file(half, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"torn")
    with pytest.raises(TrainingError, match="SafetensorError"):
        backend.update("nemo_rl_load_files", str(tmp_path), version=7)
    assert backend.ping() == 0


@pytest.fixture(scope="module")
def filtered(folder: Path) -> Iterator[EngineProcess]:
    with start(
        folder,
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        stop_token_ids=STOPS,
        more={"max_num_seqs": 256},
    ) as backend:
        yield backend


def test_logprobs_are_before_the_filters_and_after_the_temperature(
    filtered: EngineProcess, model: Any
):
    found = answers(filtered, [request(f"{s}", seed=s) for s in range(6)])
    assert max(furthest(model, r, t=0.7) for r in found.values()) < 1e-4
    for result in found.values():
        ids = torch.tensor([[*PROMPT, *result.token_ids]])
        best = model(ids).logits[0, len(PROMPT) - 1 : -1].topk(5).indices
        assert (best == ids[0, len(PROMPT) :, None]).any(1).all()


def test_tokens_are_as_frequent_as_they_are_likely(
    filtered: EngineProcess, backend: EngineProcess, model: Any
):
    logits = model(torch.tensor([PROMPT])).logits[0, -1].detach().double()
    plain = logits.softmax(-1)
    likely, order = (logits / 0.7).softmax(-1).sort(descending=True)
    kept = likely[:5] * (likely[:5].cumsum(0) - likely[:5] < 0.9 * likely[:5].sum())
    cut = torch.zeros_like(plain).index_copy(0, order[:5], kept / kept.sum())
    for engine, expected, count in ((filtered, cut, 1500), (backend, plain, 600)):
        rows = [request(f"{s}", seed=s, max_new_tokens=1) for s in range(count)]
        seen = Counter(r.token_ids[0] for r in answers(engine, rows).values())
        assert all(expected[token] > 0 for token in seen)
        # Cells of at least five expected samples; the rest is one cell.
        cells = [t for t in range(len(expected)) if expected[t] * count >= 5]
        wanted = [expected[t].item() * count for t in cells]
        got: list[float] = [seen[t] for t in cells]
        if (rest := count - sum(wanted)) > 1:
            wanted.append(rest)
            got.append(count - sum(got))
        chi = sum((g - w) ** 2 / w for g, w in zip(got, wanted, strict=True))
        degrees = len(wanted) - 1
        assert degrees > 0
        assert chi < degrees + 4 * (2 * degrees) ** 0.5, (chi, degrees)


def test_an_engine_that_has_ended_says_so(folder: Path):
    with start(folder) as backend:
        under_way(backend, request("a", **LONG))
        backend.shutdown()
        for method, *args in (
            ("ping",),
            ("submit", [request("b")]),
            ("abort", ["a"]),
            ("collect", 5.0),
        ):
            with pytest.raises(WorkerDied, match="shut down"):
                getattr(backend, method)(*args)
        backend.shutdown()


def test_what_vllm_refuses_is_said_in_a_line(tmp_path: Path, folder: Path):
    small = models.save(tmp_path / "small", "llama", layers=2, heads=4, kv_heads=2)
    wrong: dict[str, dict[str, Any]] = {
        "heads of 16 channels.*set policy.generation.backend": {"folder": small},
        "vllm_kwargs.max_num_seq:.*Did you mean max_num_seqs": {
            "more": {"max_num_seq": 3}
        },
        "vLLM refuses the model": {"folder": tmp_path / "none"},
        "vLLM refuses .*max_num_batched_tokens": {
            "more": {"max_num_batched_tokens": 2, "max_num_seqs": 8}
        },
        "pipeline_parallel_size=2: vLLM's CPU engine cannot": {"pipeline_parallel": 2},
    }
    for text, settings in wrong.items():
        with pytest.raises(ConfigurationError, match=text) as caught:
            start(settings.pop("folder", folder), **settings)
        message = str(caught.value)
        assert len(message) < 600 and "\n" not in message and "pydantic" not in message


@pytest.mark.slow
def test_two_processes_share_every_layer(folder: Path, model: Any, tmp_path: Path):
    with start(folder, tensor_parallel=2) as backend:
        assert furthest(model, answer(backend)) < 1e-4
        # Both processes fail, and both answer the next call.
        half_an_update(backend, model, tmp_path)
        newer = moved(folder)
        backend.update_weights(newer.state_dict(), 2)
        result = answer(backend)
        assert furthest(newer, result) < 1e-4 and set(result.versions) == {2}


@pytest.mark.slow
def test_a_core_in_a_process_of_its_own_labels_tokens(folder: Path, model: Any):
    newer, rows = moved(folder), [request(f"{s}", seed=s, **LONG) for s in range(8)]
    with start(folder, async_engine=True) as backend:
        assert furthest(model, answer(backend)) < 1e-4
        under_way(backend, *rows)
        backend.update_weights(newer.state_dict(), version=3)
        [part] = backend.abort(["0", "unknown"])
        found = collected(backend, 7)
        assert any(set(r.versions) == {0, 3} for r in found.values())
        assert any(set(r.versions) == {3} for r in found.values())
        for result in (part, *found.values()):
            assert result.versions == sorted(result.versions)
            at, got = result.versions.count(0), torch.tensor(result.logprobs)
            assert torch.allclose(got[:at], scores(model, result)[:at], atol=1e-4)
            assert at or torch.allclose(got, scores(newer, result), atol=1e-4)
        with pytest.raises(TrainingError, match="two requests"):
            backend.submit([request("a"), request("a")])
        assert answer(backend, begun_ids=[9] * 12).finish_reason == "length"
        result = answer(backend)
        assert set(result.versions) == {3} and furthest(newer, result) < 1e-4
        # Who is killed leaves no core behind.
        under_way(backend, request("b", **LONG))
        processes = psutil.Process(backend.pid).children(recursive=True)
        os.kill(backend.pid, signal.SIGKILL)
        _, left = psutil.wait_procs(processes, timeout=30)
        assert processes
        assert all(p.status() == psutil.STATUS_ZOMBIE for p in left)


@pytest.mark.slow
def test_a_real_model_agrees_before_and_after_an_update():
    folder = resolve_model("smollm2-135m-instruct")
    model = loaded(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    with start(folder, kv_bytes_per_token=None) as backend:
        result = answer(backend, prompt, greedy=True)
        assert "Paris" in tokenizer.decode(result.token_ids)
        assert furthest(model, result, prompt) < 1e-4
        with torch.no_grad():
            model.model.norm.weight.mul_(0.9)
        backend.update_weights(model.state_dict(), 1)
        result = answer(backend, prompt)
        assert set(result.versions) == {1} and furthest(model, result, prompt) < 1e-4
