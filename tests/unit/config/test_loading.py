"""Recipe files: parents, overrides, references, and what is wrong with a file."""

from pathlib import Path

import pytest

from nemo_rl.config.loading import (
    apply_overrides,
    load_recipe_mapping,
    load_yaml,
    parse_yaml,
)
from nemo_rl.utils.exceptions import ConfigurationError


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_parents_are_merged_below_the_file(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path / "base", one="a: {x: 1, y: 1, z: 1}\nb: [1, 2]\n")
    write(
        tmp_path,
        two="defaults: base/one.yaml\na: {y: 2}\n",
        three="c: 3\nb: [9]\n",
        four="defaults: [two.yaml, three.yaml]\na: {z: 4}\n",
    )
    assert load_yaml(tmp_path / "four.yaml") == {
        "a": {"x": 1, "y": 2, "z": 4},
        "b": [9],
        "c": 3,
    }


def test_empty_file_is_an_empty_recipe(tmp_path: Path) -> None:
    assert load_yaml(write(tmp_path, a="") / "a.yaml") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "a.yaml, line 1, column 6: not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", "line 3, column 1.*the key 'a' is given twice"),
        ("- 1\n", "holds a list; expected keys and values"),
        ("defaults: a.yaml\n", "defaults go in a circle: .*a.yaml -> .*a.yaml"),
        ("defaults: nowhere.yaml\n", "no recipe .*nowhere.yaml, named by defaults of"),
        ("defaults: [3]\n", "a path or a list of paths, not 3"),
        ("a: !!python/object:os.system {}\n", "not valid YAML"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_yaml(write(tmp_path, a=text) / "a.yaml")


def test_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, grpo_small="a: 1")
    with pytest.raises(ConfigurationError, match="Did you mean grpo_small.yaml?"):
        load_yaml(tmp_path / "grpo_smal.yaml")


def test_unreadable_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigurationError, match="a.yaml cannot be read"):
        load_yaml(tmp_path / "a.yaml")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_yaml(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1E3", 1000.0),
        ("-2e5", -2e5),
        ("'1e-6'", "1e-6"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("train_1M", "train_1M"),
    ],
)
def test_values(text: str, value: object) -> None:
    assert parse_yaml(text, "test") == value
    assert apply_overrides({}, [f"a.b={text}"]) == {"a": {"b": value}}


def test_overrides_leave_the_original() -> None:
    mapping = {"a": {"b": {"c": 1}}, "d": None}
    assert apply_overrides(
        mapping, ["a.b.c=2", "d.e=3", "++a.f={g: 1}", "a.f.h=="]
    ) == {
        "a": {"b": {"c": 2}, "f": {"g": 1, "h": "="}},
        "d": {"e": 3},
    }
    assert mapping == {"a": {"b": {"c": 1}}, "d": None}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a.b", "override 'a.b' must be key=value"),
        ("=1", "must be key=value"),
        ("a..b=1", "must be key=value"),
        ("a.b.c=1", "a.b is 5, not a section"),
        ("a.b=[", "override 'a.b=\\[', line 1.*not valid YAML"),
    ],
)
def test_overrides_that_cannot_be(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        apply_overrides({"a": {"b": 5}}, [override])


def test_references_see_overrides(tmp_path: Path) -> None:
    write(tmp_path, a="n: 1\nm: '${n}'\n")
    assert load_recipe_mapping(tmp_path / "a.yaml", ["n=7"]) == {"n": 7, "m": 7}
