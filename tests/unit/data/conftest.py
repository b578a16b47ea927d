"""A cache of the datasets library that belongs to one test."""

import pytest


@pytest.fixture
def datasets(tmp_path_factory, monkeypatch):
    """The datasets library, writing what it converts beside the test's folder."""
    library = pytest.importorskip("datasets")
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", cache)
    library.disable_progress_bars()
    return library
