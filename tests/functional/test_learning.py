"""A tiny model learns under GRPO through Ray, on real Megatron, TP2 and PP2.

Proves that reward, advantage, gradient, update and generation fit together. Says
nothing about speed or about large models.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.functional import tiny_task
from tests.functional.driver import succeed, write_recipe
from tests.functional.ranks import run_ranks


def _warm(_, folder):
    return str(tiny_task.make_model(folder, sft_steps=80))


def _sampled(_, folder):
    return tiny_task.sampled_accuracy(folder)


@pytest.fixture(scope="module")
def warm_model(tmp_path_factory) -> Path:
    (folder,) = run_ranks(_warm, 1, tmp_path_factory.mktemp("warm") / "model")
    return Path(folder)


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)], ids=["tp2", "pp2"])
def test_learns_to_reverse_digits(warm_model, tmp_path, tp, pp):
    (before,) = run_ranks(_sampled, 1, warm_model)
    recipe = write_recipe(tmp_path, tiny_task.recipe(warm_model, tp=tp, pp=pp))
    succeed(recipe, tmp_path / "run")
    (after,) = run_ranks(_sampled, 1, tmp_path / "run" / "checkpoints" / "hf")
    print(f"sampled accuracy on held-out prompts: {before:.3f} -> {after:.3f}")
    assert before < 0.30
    assert after > 0.75
