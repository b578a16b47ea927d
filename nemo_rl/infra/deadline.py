"""Deadline: whether another step and a checkpoint still fit into the time that is left.

It knows seconds: when the end is, and what a step, a validation and a checkpoint took.
Stopping and saving belong to the trainer.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from nemo_rl.infra.progress import duration
from nemo_rl.utils import env

log = logging.getLogger(__name__)

STEP, VALIDATION, SAVE = "step", "validation", "save"
RECENT = {STEP: 20, VALIDATION: 3, SAVE: 3}
"""Of how many of each the longest counts."""
WARM_UP = 3
"""After so many further steps the first one, which also compiles, is forgotten."""
SAVE_BASE_S = 10.0
SAVE_BYTES_PER_S = 1e9
OPTIMIZER_FACTOR = 7
"""A checkpoint by its bf16 weights: 2 bytes each, and 12 of fp32 weight and moments."""


def allocation_end() -> float | None:
    """Return when SLURM ends this job, in seconds since 1970; None for never.

    `slurm/job.sh` writes it into a file, which follows an extended limit. Newer
    versions of SLURM also set a variable.
    """
    path = env.read("NEMO_RL_END_FILE")
    try:
        text = Path(path).read_text(encoding="ascii") if path else ""
    except OSError as error:
        log.warning("cannot read when the job ends: %s", error)
        text = ""
    text = text.strip() or env.read("SLURM_JOB_END_TIME") or ""
    return float(text) if text.isdigit() else None


def first_save_s(model: Path, *, with_optimizer: bool = True) -> float:
    """Guess the seconds of a checkpoint before the first one: by the weights' size.

    Args:
        model: folder of the model; one without .safetensors files counts as small.
        with_optimizer: whether the optimizer's state is saved, too.
    """
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    factor = OPTIMIZER_FACTOR if with_optimizer else 1
    return SAVE_BASE_S + factor * weights / SAVE_BYTES_PER_S


class Deadline:
    """Compares the time that is left with what one more step would take.

    Args:
        margin_s: kept free before the end of the allocation, for processes to end and
            the job to be requeued.
        first_save_s: seconds of a checkpoint while none has been measured.
        must_save_by: another end, the user's own, without margin; seconds since 1970.
        learned: `learned()` of an earlier start.
        end: when the allocation ends; asked anew each time.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        *,
        margin_s: float,
        first_save_s: float,
        must_save_by: float | None = None,
        learned: Mapping[str, float] | None = None,
        end: Callable[[], float | None] = allocation_end,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Nothing has been measured yet."""
        self._margin_s = margin_s
        self._must_save_by = must_save_by
        self._expected = {STEP: 0.0, VALIDATION: 0.0, SAVE: first_save_s}
        self._learned = dict(learned or {})
        self._expected |= self._learned
        self._seen = {name: deque(maxlen=n) for name, n in RECENT.items()}
        self._warm = False
        self._end, self._clock = end, clock
        self._last_end: float | None = None

    def took(self, name: str, seconds: float) -> None:
        """Learn what a "step", "validation" or "save" took."""
        seen = self._seen[name]
        if name == STEP and not self._warm and len(seen) == WARM_UP:
            seen.popleft()
            self._warm = True
        seen.append(seconds)

    def expected(self, name: str) -> float:
        """Return the longest of the recent ones, or what an earlier start learned."""
        return max(self._seen[name], default=self._expected[name])

    def learned(self, *, saving_s: float) -> dict[str, float]:
        """Return what a later start begins with, rounded: JSON values.

        Args:
            saving_s: seconds of the checkpoint that this is written into, so far. The
                first one knows no better.
        """
        saves = self._seen[SAVE] or [self._learned.get(SAVE, 0.0)]
        found = {name: self.expected(name) for name in RECENT}
        found[SAVE] = max(saving_s, *saves)
        return {name: round(seconds, 3) for name, seconds in found.items()}

    def reason(self, *, validation: bool = False) -> str:
        """Return why to save and stop now, with the numbers; "" while there is time.

        Args:
            validation: whether the next step is followed by one.
        """
        step, save = self.expected(STEP), self.expected(SAVE)
        checked = self.expected(VALIDATION) if validation else 0.0
        needed, now = step + checked + save, self._clock()
        for end, name, margin in self._ends():
            if end - now >= needed + margin:
                continue
            parts = [f"a step {step:.0f} s"] if step else []
            parts += [f"a validation {checked:.0f} s"] if checked else []
            parts += [f"saving {save:.0f} s"]
            parts += [f"margin {margin:.0f} s"] if margin else []
            left = duration(max(0.0, end - now))
            return f"{name} at {_of_day(end)}, in {left}; {', '.join(parts)}"
        return ""

    def describe(self) -> str:
        """Return a line about when this run has to end; "" if it need not."""
        now = self._clock()
        return "; ".join(
            f"{name} at {_of_day(end)}, in {duration(max(0.0, end - now))}"
            for end, name, _ in self._ends()
        )

    def _ends(self) -> list[tuple[float, str, float]]:
        # A file system that does not answer for a moment does not lift a limit.
        self._last_end = self._end() or self._last_end
        found = []
        if self._last_end is not None:
            found.append((self._last_end, "the allocation ends", self._margin_s))
        if self._must_save_by is not None:
            name = "checkpointing.checkpoint_must_save_by is"
            found.append((self._must_save_by, name, 0.0))
        return found


def _of_day(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))
