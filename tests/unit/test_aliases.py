"""Second names: the table is complete, and each is the canonical object."""

import ast
from pathlib import Path

import pytest

import nemo_rl
from nemo_rl._aliases import ALIASES, forward

ROOT = Path(nemo_rl.__file__).parent


@pytest.mark.parametrize("module", ["nemo_rl.config.training", "nemo_rl.utils.config"])
def test_names_are_the_canonical_objects(module: str) -> None:
    from importlib import import_module

    for name, target in ALIASES[module].items():
        canonical, _, attribute = target.partition(":")
        found = getattr(import_module(module), name)
        assert found is getattr(import_module(canonical), attribute)


@pytest.mark.parametrize("module", ALIASES)
def test_alias_modules_hold_nothing_else(module: str) -> None:
    file = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    text = file.read_text()
    assert len(text.splitlines()) <= 10
    docstring, imported, assigned = ast.parse(text).body
    assert isinstance(docstring, ast.Expr)
    assert ast.unparse(imported) == "from nemo_rl._aliases import forward"
    assert ast.unparse(assigned) == "__getattr__ = forward(__name__)"


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="utils.config' has no attribute 'nope'"):
        forward("nemo_rl.utils.config")("nope")
    with pytest.raises(KeyError):
        forward("nemo_rl.nowhere")


def test_the_canonical_modules_exist() -> None:
    targets = {
        t.partition(":")[0] for names in ALIASES.values() for t in names.values()
    }
    for target in targets:
        assert ROOT.joinpath(*target.split(".")[1:]).with_suffix(".py").is_file(), (
            target
        )
