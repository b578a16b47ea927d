"""ray_session without a Ray: token file, sizes, PYTHONPATH of workers."""

import os
import sys

import pytest

from nemo_rl.distributed import ray_session
from nemo_rl.utils.exceptions import ConfigurationError


def test_a_token_file_is_private_and_never_overwritten(tmp_path):
    path = ray_session.create_token_file(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o600 and len(path.read_text()) == 64
    assert ray_session.auth_env(path) == {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(path),
    }
    with pytest.raises(FileExistsError):
        ray_session.create_token_file(tmp_path)


def test_a_missing_token_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="token file of Ray .*absent"):
        ray_session.connect("127.0.0.1:1", token_file=tmp_path / "absent")


def test_the_object_store_stays_in_its_bounds():
    size = ray_session.default_object_store()
    assert ray_session.MIN_OBJECT_STORE <= size <= ray_session.MAX_OBJECT_STORE


def test_workers_get_the_recipes_folder_but_not_the_installation(monkeypatch, tmp_path):
    site = next(p for p in sys.path if p.endswith("site-packages"))
    missing = tmp_path / "missing"
    monkeypatch.setattr(sys, "path", [str(tmp_path), "", site, str(missing)])
    monkeypatch.chdir(tmp_path)
    assert ray_session.driver_python_path().split(os.pathsep) == [str(tmp_path)]


def test_disconnect_without_a_session_is_harmless():
    ray_session.disconnect()
    assert not ray_session.is_local()
