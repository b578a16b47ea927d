"""Lazy exports: resolution and listing."""

import sys
import types

import pytest

from nemo_rl._lazy import lazy_exports


@pytest.fixture
def package():
    module = types.ModuleType("lazy_test_package")
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def test_resolves_once(package: types.ModuleType) -> None:
    getter, lister, names = lazy_exports(
        package.__name__, {"dumps": "json", "parse": "json:loads"}
    )
    import json

    assert getter("dumps") is json.dumps
    assert vars(package)["dumps"] is json.dumps
    assert getter("parse") is json.loads
    assert names == ["dumps", "parse"]
    assert {"dumps", "parse"} <= set(lister())


def test_unknown_name(package: types.ModuleType) -> None:
    getter, _, _ = lazy_exports(package.__name__, {})
    with pytest.raises(AttributeError, match="has no attribute 'x'"):
        getter("x")


def test_an_export_must_not_be_a_submodule(package: types.ModuleType) -> None:
    with pytest.raises(ValueError, match="cannot export 'train'"):
        lazy_exports(package.__name__, {"train": "lazy_test_package.train"})
