"""The files of containers/ as text: one place for versions, nothing loose, no secrets.

No image is built here; what build.sh would run is shown by small programs in the place
of docker, enroot and apptainer.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from nemo_rl.launch.images import recorded
from nemo_rl.launch.site import parse
from nemo_rl.utils.secrets import variable_is_secret

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "containers"
VERSIONS = parse((CONTAINERS / "versions.env").read_text(), "versions.env")
PINNED = {
    "RAY_VERSION": "ray",
    "TRANSFORMERS_VERSION": "transformers",
    "MEGATRON_CORE_VERSION": "megatron-core",
    "VLLM_VERSION": "vllm",
}
INSTRUCTIONS = {"ARG", "FROM", "RUN", "ENV", "COPY", "WORKDIR"}
PYTHON_OF_UBUNTU = {"22.04": "3.10", "24.04": "3.12"}
NUMBER = re.compile(r"\d+\.\d+")


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile and their text, continued lines joined."""
    lines = (CONTAINERS / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", text)
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def sections() -> dict[str, str]:
    """Header ("") and sections of the Apptainer definition."""
    found, name = {"": ""}, ""
    for line in (CONTAINERS / "nemo_rl.def").read_text().splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            found[name] = ""
        else:
            found[name] += line + "\n"
    return found


def test_every_version_is_given_once_and_used():
    declared = [text for word, text in instructions() if word == "ARG"]
    assert sorted(declared) == sorted(VERSIONS)
    before = ""
    for word, text in instructions():
        if word != "ARG":
            before += f"{text}\n"
    for name in VERSIONS:
        assert f"${{{name}}}" in before, f"{name} is used by nothing"


def test_an_argument_is_declared_before_it_is_used():
    # Those before FROM are forgotten after it.
    known: set[str] = set()
    for word, text in instructions():
        if word == "ENV":
            known |= set(re.findall(r"(\w+)=", text))
        elif word == "ARG":
            known.add(text)
        used = set(re.findall(r"\$\{(\w+)\}", text))
        assert used - {"PATH"} <= known, f"{word} {text}"
        if word == "FROM":
            known = set()


@pytest.mark.parametrize("name", ["Dockerfile", "nemo_rl.def", "build.sh", "README.md"])
def test_no_version_stands_elsewhere(name):
    assert NUMBER.findall((CONTAINERS / name).read_text()) == []


def test_the_versions_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [text for group in extras.values() for text in group]
    installed = (ROOT / "constraints.txt").read_text().splitlines()
    for name, package in PINNED.items():
        assert f"{package}=={VERSIONS[name]}" in wanted
    for name, package in PINNED.items() | {("TORCH_VERSION", "torch")}:
        lines = [line for line in installed if line.startswith(f"{package}==")]
        # vLLM for GPUs is not what `make setup` installs.
        assert lines in ([f"{package}=={VERSIONS[name]}"], [])
        assert lines or package == "vllm"
    lowest = re.fullmatch(r">=3\.(\d+)", project["requires-python"])[1]
    assert int(VERSIONS["PYTHON_VERSION"].removeprefix("3.")) >= int(lowest)
    ubuntu = re.search(r"ubuntu(\d\d\.\d\d)", VERSIONS["CUDA_IMAGE"])[1]
    assert PYTHON_OF_UBUNTU[ubuntu] == VERSIONS["PYTHON_VERSION"]


def test_the_dockerfile_is_well_formed(tmp_path):
    found = instructions()
    assert {word for word, _ in found} <= INSTRUCTIONS
    assert [word for word, _ in found if word != "ARG"][0] == "FROM"
    for word, text in found:
        if word == "RUN":
            script = tmp_path / "run.sh"
            script.write_text(text)
            checked = subprocess.run(["bash", "-n", script], capture_output=True)
            assert checked.returncode == 0, checked.stderr
            assert "pip install" not in text or "pip install --no-cache-dir" in text
            # One layer: else the lists stay in the image, or are old ones.
            if "apt-get" in text:
                assert text.startswith("apt-get update")
                assert "--no-install-recommends" in text
                assert text.endswith("rm -rf /var/lib/apt/lists/*")


def test_nothing_is_loose_and_nothing_is_secret():
    image = VERSIONS["CUDA_IMAGE"]
    assert re.fullmatch(r"[a-z0-9./-]+:[\w.-]+", image)
    assert not image.endswith(":latest")
    for word, text in instructions():
        if word == "FROM":
            assert text == "${CUDA_IMAGE}"
        if word in ("ARG", "ENV"):
            names = re.findall(r"(\w+)(?==|$)", text)
            assert not [name for name in names if variable_is_secret(name)]
        # Whatever pip installs by name has a version; what is built on is named anew,
        # so that nothing replaces it.
        for package in ("torch", "megatron-core", "ray", "transformers", "vllm"):
            if word == "RUN":
                assert not re.search(rf"(?<=\s){package}(?=\s|$)", text)


def test_the_context_holds_the_package_and_nothing_else():
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    needed = {"nemo_rl", "pyproject.toml", project["project"]["readme"], *shared}
    assert kept == needed | set(project["project"]["license-files"])
    for name in kept:
        assert (ROOT / name).exists()


def test_the_definition_is_of_the_image_that_build_makes():
    found = sections()
    assert set(found) == {"", "help", "test"}
    header = dict(line.split(": ") for line in found[""].splitlines() if line)
    assert header == {"Bootstrap": "docker-daemon", "From": "nemo_rl:latest"}
    assert "--tag nemo_rl:latest" in (CONTAINERS / "build.sh").read_text()
    code = re.search(r'python -c "(.+)"', found["test"])[1]
    compile(code, "%test", "exec")


STUB = """#!/bin/bash
printf '%s\\n' "${0##*/}" "$@" >> "$CALLS"
[ "${0##*/}" != "$FAILS" ] || exit 7
case ${0##*/} in
    enroot) printf squashed > "$3" ;;
    apptainer) printf sif > "$3" ;;
esac
"""


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Return a function that runs build.sh in a copy; it gives exit code and calls."""
    shutil.copytree(CONTAINERS, tmp_path / "containers")
    (tmp_path / "bin").mkdir()
    for name in ("docker", "enroot", "apptainer"):
        (tmp_path / "bin" / name).write_text(STUB)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(*words, fails=""):
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        done = subprocess.run(
            ["bash", "containers/build.sh", *words],
            cwd=tmp_path,
            env={
                "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
                "CALLS": str(calls),
                "FAILS": fails,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        said = calls.read_text().splitlines() if calls.exists() else []
        return done.returncode, said

    run.folder = tmp_path
    return run


def test_docker_gets_every_version(build):
    code, calls = build()
    assert code == 0
    versions = []
    for name, value in VERSIONS.items():
        versions += ["--build-arg", f"{name}={value}"]
    image = ["--file", "containers/Dockerfile", "--tag", "nemo_rl:latest", "."]
    assert calls == ["docker", "build", *versions, *image]


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [("enroot", "nemo_rl.sqsh", "squashed"), ("apptainer", "nemo_rl.sif", "sif")],
)
def test_a_file_appears_whole_and_with_its_digest(build, kind, name, text):
    code, calls = build(kind)
    assert (code, calls.count(kind)) == (0, 1)
    file = build.folder / name
    assert file.read_text() == text
    entry = json.loads((build.folder / f"{name}.json").read_text())
    assert entry["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert recorded(file) == entry
    file.write_text("old")
    code, _ = build(kind, fails=kind)
    assert (code, file.read_text()) == (7, "old")


def test_other_kinds_are_refused(build):
    assert build("podman") == (2, [])
