"""A source that samples when asked does what the trainer did without one."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from nemo_rl.experience.source import DirectSource


def test_everything_goes_straight_through() -> None:
    calls = []

    class Data:
        def batches(self, size):
            calls.append(("batches", size))
            return iter("ab")

        def state_dict(self):
            return {"position": len(calls)}

    class Policy:
        def refit(self):
            calls.append("refit")

    source = DirectSource(
        lambda prompts, step: (prompts * step, {}),
        data=Data(),
        prompts_per_batch=5,
        policy=Policy(),
    )
    batches = source.open(3, 9, None)
    assert source.phase == "generation"
    assert source.next(next(batches), 4) == ("aaaa", {})
    source.refit()
    assert calls == [("batches", 5), "refit"]
    assert source.data_state() == {"position": 2}
    assert isinstance(source.exclusively(), nullcontext)
    source.save(Path("nowhere"))
    source.close()
