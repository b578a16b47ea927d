"""The report's folder: whole, without secrets, and never in place of another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from nemo_rl.backends.refit.held import EngineWeights
from nemo_rl.models.policy.guard_findings import Finding, Transferred
from nemo_rl.models.policy.guard_report import Evidence, report, write_bundle
from nemo_rl.utils.exceptions import CheckpointError
from tests.unit.models.policy.test_guard_findings import answer

BIG = (1 << 64) - 1
EVIDENCE = Evidence(
    step=12,
    action="the run was halted",
    findings=[
        Finding(kind="differs", tensor="a.weight", engine=0, detail="its bits differ")
    ],
    transferred=Transferred(
        version=7,
        sent={"a.weight": {"float32": BIG}, "b": 3},
        engines=[
            EngineWeights(digests={"a.weight": 5}, uncovered={"b": "held in fp8"})
        ],
    ),
    canaries=[answer(mean_error=0.25)],
    config={
        "policy": {"model_name": "m", "folder": Path("f"), "ids": (1, 2)},
        "logger": {"wandb_api_key": "hush"},
    },
    measured={"guard/mult_prob_error": 1.25},
)


def test_the_folder_has_everything(tmp_path: Path):
    folder = write_bundle(tmp_path, EVIDENCE)
    assert folder == tmp_path / "guard" / "step_000012"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["policy"] == {"model_name": "m", "folder": "f", "ids": [1, 2]}
    assert config["logger"] == {"wandb_api_key": "***"}
    tensors = json.loads((folder / "tensors.json").read_text())
    assert (
        tensors["sent"]["a.weight"] == {"float32": "f" * 16} and tensors["version"] == 7
    )
    assert tensors["engines"][0]["digests"] == {"a.weight": "0000000000000005"}
    assert tensors["findings"][0]["tensor"] == "a.weight"
    canary = json.loads((folder / "canary.json").read_text())
    assert canary[0]["token_ids"] == [2] and canary[0]["errors"]["mean_error"] == 0.25


def test_the_report_reads(tmp_path: Path):
    text = report(EVIDENCE)
    assert "at step 12" in text and "What was done: the run was halted." in text
    assert "| differs | `a.weight` | 0 | its bits differ |" in text
    assert "Bits were changed on the way" in text
    assert "`b`: held in fp8" in text and "guard/mult_prob_error: 1.25" in text
    assert "| 2 | -1.00000 | -1.00000 | +0.00000 |" in text
    many = [Finding(kind="differs", tensor=f"t{n}") for n in range(99)]
    long = report(Evidence(step=1, action="x", findings=many))
    assert "69 more in tensors.json" in long and "`t29`" in long and "t30" not in long


def test_an_earlier_folder_stays(tmp_path: Path):
    folders = [write_bundle(tmp_path, EVIDENCE) for _ in range(3)]
    assert [f.name for f in folders] == [
        "step_000012",
        "step_000012_2",
        "step_000012_3",
    ]
    assert len(list((tmp_path / "guard").iterdir())) == 3  # and nothing half written


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path):
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "step_000012").symlink_to(tmp_path / "nowhere" / "x")
    with pytest.raises(CheckpointError, match="could not be written"):
        write_bundle(tmp_path, EVIDENCE)
