"""Tests of nemo_rl.launch.preflight.gpus, with a program in nvidia-smi's place."""

from __future__ import annotations

import pytest

from nemo_rl.launch.preflight import gpus

ALL_WELL = """
case $* in
  *clocks_event*) for i in 0 1; do echo "$i, Not Active, Not Active"; done ;;
  *ecc*) printf '0, 0\\n1, [N/A]\\n' ;;
  *index*) printf '0\\n1\\n' ;;
  *) echo "| NVIDIA-SMI 570.1  Driver Version: 570.1  CUDA Version: 12.8 |" ;;
esac
"""


def test_without_gpus_nothing_is_asked(context):
    for check in gpus.CHECKS:
        assert check.run(context()).verdict == "skipped"


def test_sound_gpus(context, program):
    program("nvidia-smi", ALL_WELL)
    two = context(gpus=2)
    assert gpus.count(two).verdict == "ok"
    assert gpus.ecc(two).measured == "0 uncorrected on 1 of 2 GPUs with ECC"
    assert gpus.clocks(two).verdict == "ok"


def test_a_lost_gpu(context, program):
    program("nvidia-smi", ALL_WELL)
    found = gpus.count(context(gpus=8))
    assert (found.verdict, found.measured, found.limit) == (
        "fail",
        "2 GPUs",
        "8 asked for",
    )
    found = gpus.count(context(gpus=2, variables={"CUDA_VISIBLE_DEVICES": "0"}))
    assert found.measured == "1 GPUs"


def test_no_driver(context, program):
    found = gpus.count(context(gpus=1))
    assert found.verdict == "fail" and "nvidia-smi is not there" in found.measured
    program("nvidia-smi", "echo Unable to determine the device handle; exit 15")
    found = gpus.ecc(context(gpus=1))
    assert found.measured == "Unable to determine the device handle"


def test_broken_memory_and_a_slowed_clock(context, program):
    program(
        "nvidia-smi",
        """case $* in
        *clocks_event*) echo "Field is not a valid field to query."; exit 2 ;;
        *clocks_throttle*) echo "0, Not Active, Active, Not Active" ;;
        *) printf '0, 0\\n1, 3\\n' ;; esac""",
    )
    assert gpus.ecc(context(gpus=2)).measured == "GPU 1: 3 uncorrected"
    found = gpus.clocks(context(gpus=1))
    assert (found.verdict, found.measured) == ("fail", "slowed: GPU 0 by heat")


@pytest.mark.parametrize(
    ("torch", "verdict"), [("12.9", "ok"), ("13.0", "fail"), (None, "fail")]
)
def test_driver_and_torch(context, program, monkeypatch, tmp_path, torch, verdict):
    program("nvidia-smi", ALL_WELL)
    package = tmp_path / "site" / "torch"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "version.py").write_text(f"cuda: Optional[str] = {torch!r}\n")
    monkeypatch.delitem(__import__("sys").modules, "torch", raising=False)
    monkeypatch.syspath_prepend(str(package.parent))
    assert gpus.torch_cuda() == torch
    assert gpus.driver(context(gpus=2)).verdict == verdict
