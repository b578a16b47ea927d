"""A cache of the datasets library that belongs to one test."""

import pytest


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The datasets library, writing what it converts below the test's folder."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    library.disable_progress_bars()
    return library
