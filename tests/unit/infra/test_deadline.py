"""The end comes from SLURM or the user; what fits before it is learned from seconds."""

from __future__ import annotations

import pytest

from nemo_rl.infra.deadline import Deadline, allocation_end, first_save_s

NOW = 1_700_000_000.0


def deadline(left: float | None = None, **options) -> Deadline:
    """An allocation that ends in `left` seconds."""
    settings = {"margin_s": 60.0, "first_save_s": 10.0, "clock": lambda: NOW}
    end = None if left is None else NOW + left
    return Deadline(**{**settings, "end": lambda: end, **options})


def test_without_an_end_there_is_time():
    found = deadline()
    found.took("step", 1e9)
    assert (found.reason(validation=True), found.describe()) == ("", "")


@pytest.mark.parametrize(("left", "stops"), [(160.0, False), (159.0, True)])
def test_step_validation_save_and_margin_have_to_fit(left, stops):
    found = deadline(left)
    for name, seconds in (("step", 50.0), ("validation", 25.0), ("save", 25.0)):
        found.took(name, seconds)
    assert bool(found.reason(validation=True)) is stops
    assert not found.reason()


def test_the_reason_has_every_number():
    found = deadline(100.0)
    found.took("step", 50.0)
    found.took("validation", 7.0)
    text = found.reason(validation=True)
    assert text.startswith("the allocation ends at ")
    assert ", in 1:40; a step 50 s, a validation 7 s, saving 10 s, margin 60 s" in text


def test_the_longest_recent_step_counts_but_not_the_first():
    found = deadline()
    found.took("step", 90.0)  # It compiled.
    for seconds in (5.0, 9.0):
        found.took("step", seconds)
    assert found.expected("step") == 90.0
    for seconds in (5.0, 5.0):
        found.took("step", seconds)
    assert found.expected("step") == 9.0
    for _ in range(20):
        found.took("step", 6.0)
    assert found.expected("step") == 6.0


def test_a_save_is_guessed_then_learned_then_handed_on(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(1_000_000))
    guess = first_save_s(tmp_path)
    assert guess == pytest.approx(10.007)
    assert first_save_s(tmp_path, with_optimizer=False) == pytest.approx(10.001)
    first = deadline(first_save_s=guess)
    assert first.expected("save") == guess
    # The first checkpoint cannot know how long it takes in the end.
    assert first.learned(saving_s=2.0)["save"] == 2.0
    first.took("save", 4.0)
    first.took("step", 3.0)
    saved = first.learned(saving_s=2.0)
    assert saved == {"step": 3.0, "validation": 0.0, "save": 4.0}
    second = deadline(66.0, learned=saved)
    assert "a step 3 s, saving 4 s" in second.reason()
    assert second.learned(saving_s=1.0)["save"] == 4.0


def test_the_users_own_limit_needs_no_margin_and_the_nearer_one_is_named():
    found = deadline(1000.0, must_save_by=NOW + 30.0)
    assert not found.reason()
    found.took("step", 21.0)
    assert found.reason().startswith("checkpointing.checkpoint_must_save_by is at ")
    assert found.describe().count(" at ") == 2


def test_an_extended_limit_is_seen_and_a_silent_one_is_kept():
    ends = iter([NOW + 50.0, NOW + 5000.0, None, NOW + 50.0])
    found = deadline(end=lambda: next(ends))
    assert [bool(found.reason()) for _ in range(4)] == [True, False, False, True]


def test_where_the_end_comes_from(tmp_path, monkeypatch):
    for name in ("NEMO_RL_END_FILE", "SLURM_JOB_END_TIME"):
        monkeypatch.delenv(name, raising=False)
    assert allocation_end() is None
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1700000000")
    assert allocation_end() == NOW
    file = tmp_path / "end"
    monkeypatch.setenv("NEMO_RL_END_FILE", str(file))
    assert allocation_end() == NOW
    file.write_text("1700000300\n")
    assert allocation_end() == NOW + 300
    file.write_text("unlimited\n")
    assert allocation_end() is None
