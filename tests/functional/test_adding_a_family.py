"""docs/adding-a-model-family.md, followed to the letter."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import transformers

from nemo_rl.converters import families
from nemo_rl.converters.convert import convert
from tests.fakes import models
from tests.functional.ranks import run_ranks
from tests.functional.test_convert import assert_equal, tensors
from tests.functional.test_families import _logits

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-model-family.md"


@pytest.fixture
def family(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = types.ModuleType("seed_oss")
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    monkeypatch.setitem(sys.modules, "seed_oss", module)
    families.register_family(module)
    return module


def test_a_family_is_added_as_the_page_says(family, tmp_path):
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}
    config = transformers.SeedOssConfig(
        vocab_size=131,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        initializer_range=0.08,
        attention_dropout=0.0,
        residual_dropout=0.0,
        **shape,
    )
    source = tmp_path / "source"
    models.build(config).save_pretrained(source)
    convert(source, tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "back")
    assert_equal(tensors(tmp_path / "back"), tensors(source))
    (difference,) = run_ranks(_logits, 1, source)
    assert difference <= 1e-4


def test_what_the_family_does_not_cover_is_refused(family):
    config = {"architectures": list(family.ARCHITECTURES), "mlp_bias": True}
    with pytest.raises(families.ConfigurationError, match="mlp_bias=True is not"):
        families.model_spec(config)
