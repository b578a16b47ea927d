"""Tests of nemo_rl.launch.container: what is refused before the queue."""

from __future__ import annotations

import pytest

from nemo_rl.launch.container import check_container, image_file, image_of
from nemo_rl.launch.site import Site
from nemo_rl.utils.exceptions import LaunchError


@pytest.fixture(autouse=True)
def own_variables(monkeypatch):
    for name in ("RUNTIME", "MOUNTS"):
        monkeypatch.delenv(f"NEMO_RL_CONTAINER_{name}", raising=False)
    for name in ("NEMO_RL_CONTAINER", "NEMO_RL_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)


def site(runtime, mounts=""):
    variables = {"NEMO_RL_CONTAINER_RUNTIME": runtime}
    return Site("lab", variables | {"NEMO_RL_CONTAINER_MOUNTS": mounts})


def test_without_containers_nothing_is_asked(tmp_path):
    check_container(site("none", "/nowhere:/x"), "missing.sqsh", tmp_path)
    assert image_of(site("none"), "missing.sqsh") is None


def test_what_is_there_passes(tmp_path, monkeypatch):
    (tmp_path / "x.sqsh").touch()
    check_container(site("pyxis", f"{tmp_path}:/data:ro"), "x.sqsh", tmp_path)
    check_container(site("apptainer"), str(tmp_path / "x.sqsh"), tmp_path)
    check_container(site("pyxis"), "nvcr.io#nvidia/pytorch:25.01", tmp_path)
    monkeypatch.setenv("NEMO_RL_CONTAINER", "x.sqsh")
    check_container(site("pyxis"), "missing.sqsh", tmp_path)


@pytest.mark.parametrize(
    ("runtime", "image", "mounts", "message"),
    [
        ("podman", "x.sqsh", "", "podman of site lab is none of: none, pyxis, appt"),
        ("pyxis", None, "", "no image is given: set cluster.container"),
        ("pyxis", "y.sqsh", "", r"image y.sqsh: .*/y.sqsh does not exist"),
        ("apptainer", "/no/y.sif", "", "/no/y.sif does not exist"),
        ("pyxis", "x.sqsh", "/no/where:/x", "mount /no/where:/x: /no/where does not"),
        ("pyxis", "x.sqsh", "data", "'data' is not from:to"),
        ("pyxis", "x.sqsh", "/tmp:data", "'/tmp:data' is not from:to"),
    ],
)
def test_what_is_missing_is_named(tmp_path, runtime, image, mounts, message):
    (tmp_path / "x.sqsh").touch()
    with pytest.raises(LaunchError, match=message):
        check_container(site(runtime, mounts), image, tmp_path)


def test_a_cache_that_is_mounted_exists(tmp_path, monkeypatch):
    (tmp_path / "x.sqsh").touch()
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    check_container(site("pyxis"), "x.sqsh", tmp_path)
    monkeypatch.setenv("HF_HOME", "/no/hub")
    check_container(site("none"), None, tmp_path)
    with pytest.raises(LaunchError, match="HF_HOME, which is mounted: /no/hub does"):
        check_container(site("pyxis"), "x.sqsh", tmp_path)


def test_images_of_a_registry_are_no_files(tmp_path):
    assert image_file("nvcr.io#nvidia/x:1", tmp_path) is None
    assert image_file("docker://ubuntu", tmp_path) is None
    assert image_file("a/x.sif", tmp_path) == tmp_path / "a/x.sif"
