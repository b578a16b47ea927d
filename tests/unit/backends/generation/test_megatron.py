"""The Megatron sampler: limits, stops, shared prefill and independence of batches.

Equality with Hugging Face and over layouts is tests/functional/test_parity.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nemo_rl.backends.generation.base import SamplingParams
from nemo_rl.backends.generation.megatron import MegatronInferenceBackend
from tests.fakes import models
from tests.functional.engines import engine, policy_config
from tests.functional.ranks import run_ranks
from tests.functional.sessions import LAYOUTS

PARAMS = SamplingParams(max_new_tokens=8, max_total_length=64)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "llama"
    return models.save(folder, "llama", tied=True, layers=2, hidden=64)


def prompts(lengths=(3, 7, 5, 7, 1, 6), seeds=None):
    rows, columns = len(lengths), max(lengths)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 131, (rows, columns), generator=generator)
    lengths = torch.tensor(lengths)
    return {
        "input_ids": torch.where(
            torch.arange(columns)[None] < lengths[:, None], ids, 0
        ),
        "input_lengths": lengths,
        "sampling_seed": torch.arange(rows) + 11 if seeds is None else seeds,
    }


def spell(ids):
    """Two letters per token, so that a stop string can straddle tokens."""
    return "".join(chr(97 + i // 26) + chr(97 + i % 26) for i in ids)


def _generate(rank, folder, layout, jobs, decode=None):
    """Answers to (prompts, params) jobs by one engine."""
    _, tp, pp = LAYOUTS[layout]
    backend = engine(rank, folder, policy_config(tp, pp))
    if decode is not None:
        backend.decode = decode
    sampler = MegatronInferenceBackend()
    sampler.setup(backend)
    return [sampler.generate(batch, params) for batch, params in jobs]


def generate(source, *jobs, layout="one", decode=None):
    world = LAYOUTS[layout][0]
    results = run_ranks(_generate, world, source, layout, list(jobs), decode)
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            assert all(torch.equal(got[key], want[key]) for key in want)
    return results[0]


def responses(batch, output):
    ends = output["unpadded_sequence_lengths"].tolist()
    starts = batch["input_lengths"].tolist()
    rows = output["output_ids"].tolist()
    return [row[start:end] for row, start, end in zip(rows, starts, ends, strict=True)]


@pytest.fixture(scope="module")
def free(source):
    """Sampled to the limit: (prompts, output, responses)."""
    batch = prompts()
    (output,) = generate(source, (batch, PARAMS))
    return batch, output, responses(batch, output)


def test_output_without_a_stop_runs_to_the_limit(free):
    batch, output, texts = free
    assert [len(text) for text in texts] == [8] * 6
    assert output["generation_lengths"].tolist() == [8] * 6
    assert output["truncated"].dtype == torch.bool
    assert output["truncated"].all()
    assert output["output_ids"].shape == output["logprobs"].shape == (6, 15)
    assert output["output_ids"].dtype == torch.int64
    assert output["logprobs"].dtype == torch.float32


def test_output_keeps_the_prompt_and_is_zero_beyond_the_end(free):
    batch, output, _ = free
    columns = torch.arange(15)[None]
    prompt = columns < batch["input_lengths"][:, None]
    beyond = columns >= output["unpadded_sequence_lengths"][:, None]
    width = batch["input_ids"].shape[1]
    got = torch.where(prompt, output["output_ids"], 0)[:, :width]
    assert torch.equal(got, batch["input_ids"])
    assert (output["output_ids"][beyond] == 0).all()
    assert (output["logprobs"][prompt | beyond] == 0).all()
    assert (output["logprobs"][~(prompt | beyond)] < 0).all()


def test_total_length_limits_long_prompts(source, free):
    batch, _, texts = free
    params = replace(PARAMS, max_total_length=9)
    (output,) = generate(source, (batch, params))
    room = (9 - batch["input_lengths"]).clamp(max=8)
    assert output["generation_lengths"].tolist() == room.tolist()
    assert output["truncated"].all()
    assert output["output_ids"].shape[1] == 9
    cut = [text[:n] for text, n in zip(texts, room.tolist(), strict=True)]
    assert responses(batch, output) == cut


def test_stop_token_ends_a_response_and_stays_in_it(source, free):
    batch, _, texts = free
    stops = (texts[0][3], texts[1][0], texts[2][7])
    params = replace(PARAMS, stop_token_ids=stops)
    (output,) = generate(source, (batch, params))
    expected = []
    for text in texts:
        hits = [i for i, token in enumerate(text) if token in stops]
        expected.append(text[: hits[0] + 1] if hits else text)
    assert responses(batch, output) == expected
    assert len(expected[1]) == 1
    stopped = [text[-1] in stops for text in expected]
    assert (~output["truncated"]).tolist() == stopped
    # At the very last position a stop is a stop, not a cut.
    assert len(expected[2]) <= 8 and not output["truncated"][2]


@pytest.mark.parametrize("layout", ["one", "tp2", "pp2"])
def test_stop_string_ends_a_response_wherever_its_letters_fall(source, free, layout):
    batch, _, texts = free
    whole = spell(texts[0][2:3])
    straddling = spell(texts[1][3:5])[1:3]
    params = replace(PARAMS, stop_strings=(whole, straddling))
    (output,) = generate(source, (batch, params), layout=layout, decode=spell)
    for text, got, cut in zip(
        texts, responses(batch, output), output["truncated"].tolist(), strict=True
    ):
        ends = [
            n
            for n in range(1, 9)
            if any(s in spell(text[:n]) for s in params.stop_strings)
        ]
        assert got == text[: ends[0]] if ends else got == text
        assert cut == (not ends)
    assert len(responses(batch, output)[0]) <= 3
    assert len(responses(batch, output)[1]) <= 5


def test_stop_string_of_the_prompt_does_not_stop(source, free):
    batch, _, texts = free
    stop = spell(batch["input_ids"][1, 6:7].tolist())  # the last thing it read
    assert not any(stop in spell(text) for text in texts)
    params = replace(PARAMS, stop_strings=(stop,))
    (output,) = generate(source, (batch, params), decode=spell)
    assert responses(batch, output) == texts


@pytest.mark.parametrize("size", [1, 2, 4, 6, 50])
def test_samples_do_not_depend_on_the_batch_size(source, free, size):
    batch, want, _ = free
    (output,) = generate(source, (batch, replace(PARAMS, batch_size=size)))
    assert torch.equal(output["output_ids"], want["output_ids"])
    torch.testing.assert_close(output["logprobs"], want["logprobs"])


def test_samples_do_not_depend_on_the_rows_beside(source, free):
    batch, want, texts = free
    order = torch.tensor([4, 1, 3])
    some = {key: value[order] for key, value in batch.items()}
    (output,) = generate(source, (some, PARAMS))
    assert responses(some, output) == [texts[i] for i in order.tolist()]


def test_samples_follow_their_seed(source):
    one = {key: value[:1].repeat_interleave(3, 0) for key, value in prompts().items()}
    one["sampling_seed"] = torch.tensor([1, 2, 1])
    (output,) = generate(source, (one, PARAMS))
    first, second, third = responses(one, output)
    assert first == third
    assert first != second


def test_shared_prefill_equals_reading_each_prompt(source):
    """Three prompts, four samples each: together (shared) and one by one."""
    shared = {k: v.repeat_interleave(4, 0) for k, v in prompts((5, 3, 5)).items()}
    shared["sampling_seed"] = torch.arange(12) + 40
    together, apart = generate(
        source, (shared, PARAMS), (shared, replace(PARAMS, batch_size=1))
    )
    assert torch.equal(together["output_ids"], apart["output_ids"])
    torch.testing.assert_close(together["logprobs"], apart["logprobs"])
    assert len({tuple(r) for r in responses(shared, together)}) == 12


def test_prompts_with_a_common_beginning_are_told_apart(source):
    """Both rows share the columns of the prefill and differ after them."""
    batch = prompts((6, 6, 3))
    batch["input_ids"][1] = batch["input_ids"][0]
    batch["input_ids"][1, 4] += 1
    batch["input_ids"][2, :3] = batch["input_ids"][0, :3]
    together, apart = generate(
        source, (batch, PARAMS), (batch, replace(PARAMS, batch_size=1))
    )
    assert torch.equal(together["output_ids"], apart["output_ids"])


def test_greedy_ignores_the_seed_and_top_k_of_one_is_greedy(source):
    batch = prompts()
    other = {**batch, "sampling_seed": batch["sampling_seed"] + 1000}
    greedy = replace(PARAMS, temperature=0.0)
    first, second, one = generate(
        source,
        (batch, greedy),
        (other, greedy),
        (batch, replace(PARAMS, top_k=1)),
    )
    assert torch.equal(first["output_ids"], second["output_ids"])
    assert torch.equal(first["output_ids"], one["output_ids"])


def test_setup_and_shutdown_hold_and_drop_the_engine():
    sampler, marker = MegatronInferenceBackend(), object()
    sampler.setup(marker)
    assert sampler._engine is marker
    sampler.update_weights({})
    sampler.shutdown()
    assert sampler._engine is None
