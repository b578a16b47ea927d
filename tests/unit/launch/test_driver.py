"""Tests of nemo_rl.launch.driver: folders, exit codes, errors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import yaml

from nemo_rl.algorithms.grpo.config import GRPOMasterConfig
from nemo_rl.api import functional
from nemo_rl.launch import driver
from nemo_rl.launch.site import root_dir
from nemo_rl.utils.exceptions import ConfigurationError, WorkerError

RECIPE = root_dir() / "recipes" / "grpo_smollm2_cpu.yaml"


class OneStep:
    """A trainer of one step that saves once; registered as an algorithm."""

    config_class = GRPOMasterConfig
    status = "completed"
    error: Exception | None = None
    last: OneStep

    def __init__(self, config):
        self.config, self.run_dir = config, None
        OneStep.last = self

    def fit(self, callbacks):
        if self.error:
            raise self.error
        for callback in callbacks:
            callback.on_checkpoint(self, self.run_dir / "checkpoints" / "step_000001")
        return SimpleNamespace(status=self.status)


@pytest.fixture(autouse=True)
def one_step(monkeypatch):
    monkeypatch.setitem(functional._ALGORITHM_REGISTRY, "grpo", OneStep)
    monkeypatch.setattr(OneStep, "status", "completed")
    monkeypatch.setattr(OneStep, "error", None)


def test_the_runs_folders_lie_in_its_folder(tmp_path):
    run_dir = tmp_path / "run"
    assert driver.main([str(RECIPE), "grpo.seed=7", "--run-dir", str(run_dir)]) == 0
    config = OneStep.last.config
    assert config.checkpointing.checkpoint_dir == str(run_dir / "checkpoints")
    assert config.logger.log_dir == str(run_dir / "logs")
    assert OneStep.last.run_dir == run_dir
    resolved = yaml.safe_load((run_dir / "resolved.yaml").read_text())
    assert resolved["grpo"]["seed"] == 7
    progress = (run_dir / "PROGRESS").read_text()
    assert progress == f"{run_dir}/checkpoints/step_000001\n"


def test_absolute_folders_stay(tmp_path):
    mine = tmp_path / "mine"
    override = f"checkpointing.checkpoint_dir={mine}"
    assert driver.main([str(RECIPE), override, "--run-dir", str(tmp_path / "r")]) == 0
    assert OneStep.last.config.checkpointing.checkpoint_dir == str(mine)


def test_the_configuration_is_kept_without_secrets(tmp_path):
    override = "data.dataset_kwargs.token=s3cret"
    assert driver.main([str(RECIPE), override, "--run-dir", str(tmp_path)]) == 0
    assert OneStep.last.config.data.dataset_kwargs["token"] == "s3cret"
    text = (tmp_path / "resolved.yaml").read_text()
    assert "token: '***'" in text and "s3cret" not in text


def test_a_preempted_run_ends_with_75(tmp_path, monkeypatch):
    monkeypatch.setattr(OneStep, "status", "preempted")
    assert driver.main([str(RECIPE), "--run-dir", str(tmp_path)]) == 75


@pytest.mark.parametrize(
    ("error", "code"), [(ConfigurationError("no such"), 2), (WorkerError("lost"), 1)]
)
def test_errors_are_one_paragraph(monkeypatch, capsys, tmp_path, error, code):
    monkeypatch.setattr(OneStep, "error", error)
    assert driver.main([str(RECIPE), "--run-dir", str(tmp_path)]) == code
    assert capsys.readouterr().err == f"nemo_rl: {error}\n"
    assert driver.main([str(RECIPE), "--run-dir", str(tmp_path), "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_a_wrong_recipe_writes_nothing(tmp_path, capsys):
    run_dir = tmp_path / "run"
    assert driver.main([str(RECIPE), "grpo.sed=7", "--run-dir", str(run_dir)]) == 2
    assert "Did you mean" in capsys.readouterr().err
    assert not run_dir.exists()
