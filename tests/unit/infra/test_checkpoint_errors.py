"""The messages say where, why and what to do; used in test_checkpointing."""

from __future__ import annotations

from pathlib import Path

from nemo_rl.infra import checkpoint_errors as errors
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError


def test_save_failed_names_the_newest_good_step(tmp_path):
    cause = OSError(28, "No space left on device")
    error = errors.save_failed(tmp_path, 30, cause=cause, good_steps=[10, 20])
    assert isinstance(error, CheckpointError)
    assert "step 30" in str(error) and "that of step 20 stays" in str(error)
    assert "No space left on device" in str(error) and "free" in str(error)


def test_save_failed_without_anything_left(tmp_path):
    error = errors.save_failed(
        tmp_path / "gone", 1, cause=RuntimeError("x"), good_steps=[]
    )
    assert "there is none" in str(error) and "free space unknown" in str(error)


def test_what_to_change_is_in_each():
    folder = Path("/c")
    for error, part in (
        (errors.unwritable(folder, OSError(13, "Permission denied")), "Permission"),
        (errors.too_small(folder, 10, 2**40), "1.0 TiB"),
        (errors.not_resuming(folder, "step_000010"), "resume to true"),
    ):
        assert isinstance(error, ConfigurationError)
        assert part in str(error) and "/c" in str(error)
    assert "another run" in str(errors.taken_over(folder, None))
