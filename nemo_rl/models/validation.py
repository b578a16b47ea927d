"""Does what samples agree with what trains? Checks of a policy against itself.

A trainer that computes other log-probabilities than the sampler reported optimises
something else than it believes. Knows no data set: the prompts are random tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nemo_rl.config.keywords import build_mapping
from nemo_rl.config.master import MasterConfig
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.models.sources import find_model, opened_policy
from nemo_rl.utils.exceptions import ConfigurationError

log = logging.getLogger(__name__)

THRESHOLD = 1.05
"""Largest mean of exp|difference| of log-probabilities that is still rounding."""
LENGTH = 24
"""Tokens of prompt and response together, in the checks of a model by its name."""
_PROMPTS, _PROMPT_LENGTH = 4, 6
_SAME_TOKENS = 0.9


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: its name.
        ok: the verdict.
        detail: the numbers behind it, in words.
        error: mean of exp|difference| of log-probabilities, where it compares any.
    """

    check: str
    ok: bool
    detail: str
    error: float | None = None


def validate_log_probability_consistency(
    training_backend: Any,
    inference_backend: Any,
    test_data: BatchedDataDict,
    threshold: float = THRESHOLD,
) -> bool:
    """Whether the trainer computes the log-probabilities that the sampler reports.

    Args:
        training_backend: has ``get_logprobs(batch)``, as a ``PolicyInterface``.
        inference_backend: has ``generate(batch, greedy)``, as a
            ``GenerationInterface``; may be the same policy.
        test_data: prompts, ``input_ids`` [B, S] and ``input_lengths`` [B].
        threshold: see ``compare_log_probabilities``, whose numbers are logged.
    """
    found = compare_log_probabilities(
        training_backend, inference_backend, test_data, threshold
    )
    level = logging.INFO if found.ok else logging.WARNING
    log.log(level, "log-probabilities: %s", found.detail)
    return found.ok


def compare_log_probabilities(
    training_backend: Any,
    inference_backend: Any,
    test_data: BatchedDataDict,
    threshold: float = THRESHOLD,
) -> Finding:
    """Sample, score the samples with the trainer, and compare token by token.

    Args:
        training_backend: as for ``validate_log_probability_consistency``.
        inference_backend: as there.
        test_data: as there.
        threshold: largest mean of exp|difference| over the generated tokens. 1 is
            perfect agreement; rounding in bfloat16 stays well below 1.05.
    """
    output = _generated(inference_backend, test_data, greedy=False)
    scored = training_backend.get_logprobs(
        BatchedDataDict(
            {
                "input_ids": output["output_ids"],
                "input_lengths": output["unpadded_sequence_lengths"],
            }
        )
    )["logprobs"]
    ends = output["unpadded_sequence_lengths"][:, None]
    starts = ends - output["generation_lengths"][:, None]
    columns = torch.arange(output["output_ids"].shape[1])[None]
    mask = (columns >= starts) & (columns < ends)
    return _compared(
        "training and generation", scored[mask], output["logprobs"][mask], threshold
    )


def check_length(policy: Any, vocabulary: int, limit: int) -> Finding:
    """Whether no sequence gets longer than a limit, and what cannot fit is refused.

    Args:
        policy: made with ``max_total_sequence_length=limit``, ``ignore_eos`` and no
            smaller bound on new tokens: every response then runs into the limit.
        vocabulary: tokens to make prompts of.
        limit: the longest sequence, prompt and response together.
    """
    name = "length limit"
    prompts = random_prompts(vocabulary)
    output = _generated(policy, prompts, greedy=False)
    lengths = output["unpadded_sequence_lengths"].tolist()
    if max(lengths) > limit:
        return Finding(name, False, f"sequences of {lengths} tokens, limit {limit}")
    if not bool(output["truncated"].all()):
        return Finding(name, False, "a response that was cut off does not say so")
    full = BatchedDataDict(
        {
            "input_ids": torch.full((1, limit), 3),
            "input_lengths": torch.tensor([limit]),
        }
    )
    try:
        _generated(policy, full, greedy=False)
    except ConfigurationError:
        detail = f"sequences of {lengths} tokens, limit {limit}"
        return Finding(name, True, detail)
    return Finding(name, False, f"a prompt of {limit} tokens was not refused")


def check_decoding(
    policy: Any, vocabulary: int, threshold: float = THRESHOLD
) -> Finding:
    """Whether decoding token by token equals reading the same tokens at once.

    The greedy response to a prompt is cut at several places; each part, read as a
    prompt of its own, must be continued by the same token with the same
    log-probability as when it was decoded over the cache.

    Args:
        policy: has ``generate``; made as for ``check_length``.
        vocabulary: tokens to make prompts of.
        threshold: as for ``compare_log_probabilities``.
    """
    name = "decoding and prefill"
    output = _generated(policy, random_prompts(vocabulary, ragged=False), greedy=True)
    ids, ends = output["output_ids"], output["unpadded_sequence_lengths"]
    length = int(ends.min())
    cuts = sorted({_PROMPT_LENGTH + 1, (length + _PROMPT_LENGTH) // 2, length - 1})
    pairs, decoded = [], []
    for cut in cuts:
        part = BatchedDataDict(
            {
                "input_ids": ids[:, :cut],
                "input_lengths": torch.full((len(ids),), cut),
            }
        )
        again = _generated(policy, part, greedy=True)
        pairs.append(again["output_ids"][:, cut] == ids[:, cut])
        decoded.append((again["logprobs"][:, cut], output["logprobs"][:, cut]))
    same = torch.stack(pairs)
    prefilled = torch.stack([one for one, _ in decoded])
    stepped = torch.stack([other for _, other in decoded])
    share = float(same.float().mean())
    if share < _SAME_TOKENS:  # a tie that rounds the other way is no fault
        return Finding(name, False, f"only {share:.0%} of the tokens are the same")
    return _compared(name, prefilled[same], stepped[same], threshold)


def diagnose(model_name: str | Path, **keywords: Any) -> list[Finding]:
    """Run every check on a model.

    Args:
        model_name: as for ``models.sources.find_model``.
        **keywords: of a recipe: ``tensor_parallel_size``, ``cpu_workers_per_node``,
            ``precision``, whole sections.

    Raises:
        NemoRLError: no such model, or a layout that does not fit it.
    """
    return _run(model_name, _CHECKS, keywords)


def _no_test_of_pytest(function: Any) -> Any:
    """Mark a function of the library whose name looks like a test's."""
    function.__test__ = False
    return function


@_no_test_of_pytest
def test_max_model_len_respected(model_name: str, **keywords: Any) -> bool:
    """Whether a model's sequences stay within ``max_total_sequence_length``.

    Arguments as for ``diagnose``.
    """
    return _alone(model_name, _length, keywords)


@_no_test_of_pytest
def test_generation_consistency(model_name: str, **keywords: Any) -> bool:
    """Whether decoding and prefill of a model agree; see ``check_decoding``.

    Arguments as for ``diagnose``.
    """
    return _alone(model_name, _decoding, keywords)


def random_prompts(vocabulary: int, *, ragged: bool = True) -> BatchedDataDict:
    """Four prompts of random tokens, the same in every call; ragged: 3 to 6 tokens."""
    generator = torch.Generator().manual_seed(0)
    shape = (_PROMPTS, _PROMPT_LENGTH)
    ids = torch.randint(3, vocabulary, shape, generator=generator)
    lengths = torch.full((_PROMPTS,), _PROMPT_LENGTH)
    if ragged:
        lengths -= torch.arange(_PROMPTS) % 4
    return BatchedDataDict({"input_ids": ids, "input_lengths": lengths})


def _log_probabilities(policy: Any, vocabulary: int) -> Finding:
    return compare_log_probabilities(policy, policy, random_prompts(vocabulary))


def _decoding(policy: Any, vocabulary: int) -> Finding:
    return check_decoding(policy, vocabulary)


def _length(policy: Any, vocabulary: int) -> Finding:
    return check_length(policy, vocabulary, LENGTH)


_Check = Callable[[Any, int], Finding]
_CHECKS: tuple[_Check, ...] = (_log_probabilities, _decoding, _length)


def _run(
    model_name: str | Path, checks: tuple[_Check, ...], keywords: dict[str, Any]
) -> list[Finding]:
    with _policy(model_name, keywords) as (policy, vocabulary):
        return [check(policy, vocabulary) for check in checks]


def _alone(model_name: str, check: _Check, keywords: dict[str, Any]) -> bool:
    (found,) = _run(model_name, (check,), keywords)
    level = logging.INFO if found.ok else logging.WARNING
    log.log(level, "%s: %s", found.check, found.detail)
    return found.ok


@contextmanager
def _policy(
    model_name: str | Path, keywords: dict[str, Any]
) -> Iterator[tuple[Any, int]]:
    """A policy of the model whose responses run into a limit of ``LENGTH`` tokens."""
    mapping = build_mapping(MasterConfig, str(model_name), "diagnose", **keywords)
    del mapping["diagnose"]
    config = MasterConfig.from_mapping(mapping)
    config.policy.max_total_sequence_length = LENGTH
    config.policy.generation.max_new_tokens = LENGTH
    config.policy.generation.ignore_eos = True
    source = find_model(model_name)
    vocabulary = int(read_hf_config(source.folder)["vocab_size"])
    with opened_policy(source, config) as policy:
        yield policy, vocabulary


def _generated(backend: Any, prompts: BatchedDataDict, *, greedy: bool) -> Any:
    """Generate between the two calls that some generators want around it."""
    for_generation = getattr(backend, "prepare_for_generation", None)
    if for_generation is not None:
        for_generation()
    output = backend.generate(prompts, greedy)
    finish = getattr(backend, "finish_generation", None)
    if finish is not None:
        finish()
    return output


def _compared(
    name: str, one: torch.Tensor, other: torch.Tensor, threshold: float
) -> Finding:
    """Compare log-probabilities [N] of the same tokens."""
    if not len(one):
        return Finding(name, False, "nothing was generated to compare")
    difference = (one.double() - other.double()).abs()
    error = float(difference.exp().mean())
    detail = (
        f"mean exp|difference| {error:.6f} over {len(one)} tokens (at most "
        f"{threshold:g}), largest difference {float(difference.max()):.2e}"
    )
    # A comparison with what is no number is false.
    return Finding(name, error <= threshold, detail, error)
