"""Optional dependencies and code named by a recipe."""

import json
import pickle
import sys
from pathlib import Path

import pytest

from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.imports import import_object, require


@pytest.fixture
def folder(tmp_path: Path):
    before = set(sys.modules)
    (tmp_path / "my_rewards.py").write_text(
        "def score(prompt, response):\n    return 1.0\n"
    )
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_require_returns_the_module() -> None:
    assert require("json") is json


def test_require_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'nemo_rl\[loggers\]'"):
        require("mlflow")


def test_require_says_what_to_do_instead() -> None:
    with pytest.raises(
        ConfigurationError,
        match="no_such_thing is not installed. pip install no_such_thing, or do y.",
    ):
        require("no_such_thing", instead="do y")


@pytest.mark.parametrize("path", ["json:dumps", "json.dumps"])
def test_both_spellings(path: str) -> None:
    assert import_object(path) is json.dumps


def test_nested_attribute() -> None:
    assert import_object("json:JSONEncoder.default") is json.JSONEncoder.default


def test_finds_code_beside_the_recipe_first(folder: Path) -> None:
    score = import_object("my_rewards:score", search_dir=folder)
    assert score("", "") == 1.0
    assert import_object("my_rewards.py:score", search_dir=folder) is score
    assert pickle.loads(pickle.dumps(score)) is score


def test_a_file_does_not_replace_a_loaded_module(folder: Path) -> None:
    (folder / "json.py").write_text("mine = 1\n")
    assert import_object("json:mine", search_dir=folder) == 1
    assert import_object("json:mine", search_dir=folder) == 1
    assert sys.modules["json"] is json


def test_a_file_that_raises_is_not_kept(folder: Path) -> None:
    (folder / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        import_object("broken:x", search_dir=folder)
    assert "broken" not in sys.modules


def test_missing_attribute_suggests(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="no 'scor'. Did you mean score?"):
        import_object("my_rewards:scor", search_dir=folder)


def test_missing_module_says_where_it_was_looked_for(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"Looked in {folder} and among"):
        import_object("nowhere_else:f", search_dir=folder)


def test_missing_dependency_of_a_module_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = folder / "pkg_a"
    package.mkdir()
    (package / "__init__.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(str(folder))
    with pytest.raises(ConfigurationError, match="importing pkg_a failed.*dependency"):
        import_object("pkg_a:f")


@pytest.mark.parametrize("path", ["score", ":score", "rewards:", ""])
def test_malformed_path(path: str) -> None:
    with pytest.raises(ConfigurationError, match="does not name an object"):
        import_object(path)
