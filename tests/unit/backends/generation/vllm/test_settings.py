"""What an engine is started with; no vLLM is imported."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_rl.backends.generation.vllm.engine_config import short_reason
from nemo_rl.backends.generation.vllm.settings import (
    VllmSettings,
    engine_arguments,
    process_variables,
)
from nemo_rl.utils.exceptions import ConfigurationError


def settings(**fields: Any) -> VllmSettings:
    given = {"model": "m", "dtype": "float32", "max_model_len": 1000}
    return VllmSettings(**{**given, **fields})


def test_log_probs_are_after_the_temperature_and_before_filters() -> None:
    modes = {
        name: engine_arguments(settings(**fields))["logprobs_mode"]
        for name, fields in {
            "plain": {"temperature": 0.7},
            "top_p": {"top_p": 0.9},
            "top_k": {"top_k": 4, "temperature": 0.7},
        }.items()
    }
    assert modes == {
        "plain": "processed_logprobs",
        "top_p": "raw_logprobs",
        "top_k": "raw_logprobs",
    }
    assert settings(top_k=4, temperature=0.7).scales_logits
    for fields in (
        {"top_k": 4},
        {"temperature": 0.7},
        {"top_p": 0.5, "temperature": 0},
    ):
        assert not settings(**fields).scales_logits


def test_a_temperature_that_vllm_changes_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="temperature=0.005.*0.01 at least"):
        settings(temperature=0.005)
    settings(temperature=0.0)
    settings(temperature=0.01)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 256 * 2**20),
        ({"kv_bytes_per_token": 10}, 64 * 2**20),
        ({"kv_bytes_per_token": 4000}, 64 * 1000 * 4000),
        ({"kv_bytes_per_token": 4000, "more": {"max_num_seqs": 20}}, 20 * 1000 * 4000),
        ({"kv_bytes_per_token": 10**6}, 4 * 2**30),
    ],
)
def test_a_cpu_has_a_cache_for_its_rows_within_bounds(fields, expected) -> None:
    given = engine_arguments(settings(**fields))
    assert given["kv_cache_memory_bytes"] == expected
    assert given["enforce_eager"] is True


def test_a_gpu_sleeps_only_where_it_is_shared() -> None:
    for colocated in (False, True):
        given = engine_arguments(settings(use_gpu=True, colocated=colocated))
        assert given["enable_sleep_mode"] is colocated
        assert "kv_cache_memory_bytes" not in given
        assert given["gpu_memory_utilization"] == 0.6
    assert not engine_arguments(settings(colocated=True))["enable_sleep_mode"]


def test_processes_and_further_arguments() -> None:
    both = settings(tensor_parallel=2, pipeline_parallel=3, more={"max_num_seqs": 9})
    given = engine_arguments(both)
    assert both.processes == 6 and given["max_num_seqs"] == 9
    assert given["distributed_executor_backend"] == "mp"
    assert "distributed_executor_backend" not in engine_arguments(settings())
    assert "hf_overrides" not in engine_arguments(settings())


def test_only_a_core_of_its_own_is_another_process() -> None:
    name = "VLLM_ENABLE_V1_MULTIPROCESSING"
    assert process_variables(settings())[name] == "0"
    for fields in ({"async_engine": True}, {"pipeline_parallel": 2}):
        assert process_variables(settings(**fields))[name] == "1"
    variables = process_variables(settings(threads=3))
    assert variables["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in process_variables(settings(use_gpu=True))


class Validation(ValueError):
    """As pydantic's: a list of findings, and a text full of values."""

    def errors(self) -> list[dict[str, str]]:
        return [{"msg": "Value error, too small"}, {"msg": "Field required"}]

    def __str__(self) -> str:
        return "2 validation errors for X\n  [input_value=...]"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Validation(), "too small; Field required"),
        (RuntimeError("\n  first line \nsecond"), "first line"),
        (KeyError(), "KeyError"),
    ],
)
def test_an_error_of_vllm_is_one_line(error, text) -> None:
    assert short_reason(error) == text


def test_a_long_line_is_cut() -> None:
    assert len(short_reason(ValueError("word " * 200))) <= 304
