"""One prompt through both stacks; also of models that are not the same."""

from __future__ import annotations

import pytest

from nemo_rl.backends.training.megatron import prompt_check
from nemo_rl.converters.cli.parser import main
from nemo_rl.converters.convert import convert
from tests.fakes import models
from tests.functional.ranks import run_ranks


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for seed in (1, 2):
        shape = {"layers": 2, "hidden": 32, "tied": True}
        models.save(root / f"hf{seed}", "gemma3", seed=seed, **shape)
    convert(root / "hf1", root / "megatron")
    return root


def _check(rank, checkpoint, folder):
    return prompt_check.check(checkpoint, checkpoint / "hf", folder)


def test_other_weights_are_found(folders):
    (found,) = run_ranks(_check, 1, folders / "megatron", folders / "hf2")
    assert not found["equal"] and found["difference"] > 0.1
    assert found["prompt"] == "1 2 3 4 5 6 7 8"
    assert len(found["megatron"].split()) == prompt_check.NEW_TOKENS


def test_verify_compares_what_both_compute(folders, capsys):
    assert main(["verify", str(folders / "hf1"), str(folders / "megatron")]) == 0
    out = capsys.readouterr().out
    assert "equal: every element of" in out
    assert "Megatron and transformers compute the same" in out
    assert main(["verify", "--no-logits", *[str(folders / "hf1")] * 2]) == 0
    assert "compute the same" not in capsys.readouterr().out
