"""BaseConfig: reading, assigning, merging, and its errors."""

import collections
import pickle

import pytest
from pydantic import Field

from nemo_rl.config.base import BaseConfig, merge, plain
from nemo_rl.utils.exceptions import ConfigurationError


class Inner(BaseConfig):
    learning_rate: float = 0.1
    """How fast."""


class Outer(BaseConfig):
    name: str
    """What it is called."""
    steps: int = Field(1, ge=1)
    """How many."""
    inner: Inner = Field(default_factory=Inner)
    """Nested."""
    items: list[Inner] | None = None
    """Several."""


def test_reads_like_a_mapping() -> None:
    config = Outer(name="a", items=[{"learning_rate": 2}])
    assert config["name"] == config.name == config.get("name") == "a"
    assert config.get("nam", 5) == 5
    assert "steps" in config and "step" not in config
    assert list(config) == config.keys() == ["name", "steps", "inner", "items"]
    assert len(config) == 4
    assert dict(config)["inner"]["learning_rate"] == 0.1
    with pytest.raises(KeyError, match="nope"):
        config["nope"]


def test_assignment_validates() -> None:
    config = Outer(name="a")
    config.steps = 3
    config.inner = {"learning_rate": 5}
    assert config.steps == 3
    assert isinstance(config.inner, Inner) and config.inner.learning_rate == 5
    with pytest.raises(ConfigurationError, match="steps=0: expected greater than or"):
        config.steps = 0
    with pytest.raises(
        ConfigurationError, match="step is not a field. Did you mean st"
    ):
        config.step = 2
    assert config.steps == 3


def test_constructor_and_from_mapping_raise_the_same() -> None:
    with pytest.raises(ConfigurationError) as by_name:
        Outer(nam="x")
    with pytest.raises(ConfigurationError) as by_mapping:
        Outer.from_mapping({"nam": "x"})
    assert str(by_name.value) == str(by_mapping.value)
    assert "- name is required: What it is called." in str(by_name.value)
    assert "- nam is not a field. Did you mean name?" in str(by_name.value)


def test_every_problem_is_listed_with_its_path() -> None:
    with pytest.raises(ConfigurationError) as error:
        Outer.from_mapping(
            {"name": "x", "steps": "many", "inner": {"learning_rat": 1}, "items": [{}]}
        )
    assert str(error.value).splitlines() == [
        "2 problems:",
        "- steps='many': expected a valid integer, unable to parse string as an "
        "integer.",
        "- inner.learning_rat is not a field. Did you mean learning_rate?",
    ]


def test_path_within_a_list() -> None:
    with pytest.raises(ConfigurationError, match=r"^items\[1\].learning_rat is not a"):
        Outer.from_mapping({"name": "x", "items": [{}, {"learning_rat": 1}]})


def test_unknown_without_a_close_name_lists_the_fields() -> None:
    with pytest.raises(ConfigurationError, match="inner.qqq is not a field. inner has"):
        Outer(name="x", inner={"qqq": 1})


def test_takes_any_mapping() -> None:
    mapping = collections.ChainMap({"inner": collections.UserDict()}, {"name": "a"})
    assert Outer.from_mapping(mapping).inner == Inner()
    assert Outer.from_mapping(Outer(name="b")).name == "b"
    with pytest.raises(ConfigurationError, match="built from a mapping.*not from list"):
        Outer.from_mapping([("name", "a")])


def test_takes_omegaconf() -> None:
    omegaconf = pytest.importorskip("omegaconf")
    source = omegaconf.OmegaConf.create(
        {"name": "a", "steps": 2, "items": [{"learning_rate": "${steps}"}]}
    )
    assert Outer.from_mapping(source).items[0].learning_rate == 2


def test_merged_is_validated_and_leaves_the_original() -> None:
    config = Outer(name="a", inner={"learning_rate": 3})
    changed = config.merged({"inner": {"learning_rate": 4}})
    assert changed.inner.learning_rate == 4 and changed.name == "a"
    assert config.inner.learning_rate == 3
    with pytest.raises(ConfigurationError, match="inner.x is not a field"):
        config.merged({"inner": {"x": 1}})


def test_round_trip_and_pickle() -> None:
    config = Outer(name="a", steps=4)
    assert Outer.from_mapping(config.to_dict()) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_sections_are_copied_not_shared() -> None:
    inner = Inner()
    first, second = Outer(name="a", inner=inner), Outer(name="b", inner=inner)
    first.inner.learning_rate = 9
    assert second.inner.learning_rate == inner.learning_rate == 0.1


def test_merge_replaces_what_is_no_mapping() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert merge(base, {"a": {"c": [3]}, "d": {"e": 1}}) == {
        "a": {"b": 1, "c": [3]},
        "d": {"e": 1},
    }
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


def test_plain_turns_tuples_and_configs_into_lists_and_dicts() -> None:
    assert plain({"a": (1, Inner())}) == {"a": [1, {"learning_rate": 0.1}]}
