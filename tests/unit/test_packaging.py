"""pyproject.toml: what it promises about extras, entry points and rooms exists."""

import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from nemo_rl.utils.imports import EXTRA_OF

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_extra_that_an_error_names_is_there() -> None:
    assert set(EXTRA_OF.values()) <= set(PROJECT["project"]["optional-dependencies"])


def test_the_core_is_light() -> None:
    names = {text.partition(">")[0] for text in PROJECT["project"]["dependencies"]}
    assert names == {"pydantic", "pyyaml", "numpy", "rich"}


def test_entry_points_are_callable() -> None:
    for target in PROJECT["project"]["scripts"].values():
        module, _, name = target.partition(":")
        assert callable(getattr(import_module(module), name))


@pytest.mark.parametrize("room", ["recipes", "launch", "slurm"])
def test_rooms_beside_the_package_are_shipped(room: str) -> None:
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"][room] == f"nemo_rl/_share/{room}"
    assert (ROOT / room).is_dir()


def test_every_room_of_the_package_has_a_layer() -> None:
    contract = PROJECT["tool"]["importlinter"]["contracts"][0]
    named = set(" ".join(contract["layers"]).replace("|", " ").split())
    named = {name.strip("()") for name in named}
    there = {
        path.stem
        for path in (ROOT / "nemo_rl").iterdir()
        if path.stem not in ("__init__", "__pycache__", "_share")
    }
    assert there <= named


def test_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"
