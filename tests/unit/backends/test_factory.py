"""Names of engines to their classes."""

from __future__ import annotations

import pytest

import tests.functional.ranks  # noqa: F401 - installs the shim before megatron loads
from nemo_rl.backends import factory
from nemo_rl.backends.factory import get_generation_backend, get_training_backend
from nemo_rl.backends.generation.base import register_generation_backend
from nemo_rl.backends.training.base import register_training_backend
from nemo_rl.utils.exceptions import ConfigurationError


@pytest.fixture(autouse=True)
def own_names(monkeypatch):
    for names in factory.REGISTERED.values():
        for name in [*names]:
            monkeypatch.delitem(names, name)
    yield
    for names in factory.REGISTERED.values():
        names.clear()


def test_built_in_engines_are_found():
    from nemo_rl.backends.generation.megatron import MegatronInferenceBackend
    from nemo_rl.backends.training.megatron import MegatronBackend

    assert type(get_training_backend("megatron")) is MegatronBackend
    assert type(get_generation_backend("megatron")) is MegatronInferenceBackend
    from nemo_rl.backends.generation.hf import HFBackend
    from nemo_rl.backends.training.dtensor import DTensorBackend

    assert type(get_training_backend("dtensor")) is DTensorBackend
    assert type(get_generation_backend("hf")) is HFBackend


def test_registered_engine_is_found_under_its_kind_alone():
    @register_training_backend("mine")
    class Mine:
        pass

    assert type(get_training_backend("mine")) is Mine
    assert get_training_backend("mine") is not get_training_backend("mine")
    with pytest.raises(ConfigurationError, match="unknown generation backend 'mine'"):
        get_generation_backend("mine")
    assert register_training_backend("mine")(Mine) is Mine  # once more is harmless


def test_taken_name_is_refused():
    @register_generation_backend("mine")
    class Mine:
        pass

    class Other:
        pass

    with pytest.raises(ConfigurationError, match="'mine' exists already"):
        register_generation_backend("mine")(Other)
    with pytest.raises(ConfigurationError, match="'megatron' exists already"):
        register_generation_backend("megatron")(Other)


def test_unknown_engines_say_what_to_use():
    with pytest.raises(ConfigurationError, match="Did you mean megatron"):
        get_training_backend("megatorn")
    with pytest.raises(ConfigurationError, match="Did you mean vllm"):
        get_generation_backend("vlm")
    with pytest.raises(ConfigurationError, match="no module named nowhere"):
        get_training_backend("nowhere:Engine")


def test_classes_of_the_driver_are_known_in_a_worker():
    @register_training_backend("mine")
    class Mine:
        pass

    name = "tests.fakes.workers:FakeWorkers"
    classes = factory.own_classes("mine", name)
    assert classes[("training", "mine")] is Mine
    assert classes[("generation", name)].__name__ == "FakeWorkers"
    assert factory.own_classes("megatron", "") == {}
    factory.REGISTERED["training"].clear()
    factory.adopt(classes)
    assert type(get_training_backend("mine")) is Mine
