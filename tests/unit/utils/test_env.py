"""The table of environment variables."""

from pathlib import Path

import pytest

from nemo_rl.utils import env


def test_a_recipes_key_is_read_by_the_name_it_gives(monkeypatch) -> None:
    monkeypatch.setenv("A_JUDGES_KEY", "k")
    assert env.secret("A_JUDGES_KEY") == "k"
    assert env.secret("NOT_SET_AT_ALL") is None


def test_only_variables_of_the_table_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_RL_ROOT", "/somewhere")
    assert env.read("NEMO_RL_ROOT") == "/somewhere"
    assert env.root_dir() == Path("/somewhere")
    with pytest.raises(KeyError, match="HOME is not in the table"):
        env.read("HOME")


def test_empty_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_RL_ROOT", "")
    assert env.read("NEMO_RL_ROOT", "default") == "default"
    assert env.root_dir() is None


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("true", True), ("0", False), ("", False)]
)
def test_flag(value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_RL_DEBUG", value)
    assert env.flag("NEMO_RL_DEBUG") is expected


@pytest.mark.parametrize(
    ("value", "expected"), [("0", True), ("1", False), ("", False)]
)
def test_off(value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_RL_PREFLIGHT", value)
    assert env.off("NEMO_RL_PREFLIGHT") is expected


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NEMO_RL_CACHE", raising=False)
    assert env.cache_dir() == tmp_path / ".cache" / "nemo_rl"
    monkeypatch.setenv("NEMO_RL_CACHE", "~/elsewhere")
    assert env.cache_dir() == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("value", "expected"), [(None, None), ("", 0), ("-1", 0), ("0,3", 2)]
)
def test_visible_gpus(
    value: str | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert env.visible_gpus() == expected


def test_worker_env_on_cpu() -> None:
    variables = env.worker_env(use_gpus=False, threads=3)
    assert variables["OMP_NUM_THREADS"] == "3"
    assert variables["OMP_WAIT_POLICY"] == "passive"
    assert variables["TORCHDYNAMO_DISABLE"] == "1"
    assert variables["CUDA_VISIBLE_DEVICES"] == ""
    assert all(isinstance(value, str) for value in variables.values())


def test_worker_env_on_gpu_leaves_the_devices_alone() -> None:
    variables = env.worker_env(use_gpus=True)
    assert "CUDA_VISIBLE_DEVICES" not in variables
    assert "TORCHDYNAMO_DISABLE" not in variables
    assert variables["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"


def test_apply_and_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEMO_RL_DEBUG", "0")
    env.apply({"NEMO_RL_DEBUG": "1"})
    copy = env.inherited()
    assert copy["NEMO_RL_DEBUG"] == "1"
    copy["NEMO_RL_DEBUG"] = "0"
    assert env.flag("NEMO_RL_DEBUG")
