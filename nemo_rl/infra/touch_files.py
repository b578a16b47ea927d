"""TouchFiles: SAVE and STOP in the run folder, by which a person asks a training.

Files work where no signal reaches: from a login node, inside a container. What is done
about them is the trainer's business.
"""

from __future__ import annotations

from pathlib import Path

SAVE = "SAVE"
"""Save now and go on; removed once a checkpoint is written."""
STOP = "STOP"
"""Save, export and end as if that were the last step."""
STOPPED = "STOPPED"
"""What STOP is called once it was obeyed; `slurm/job.sh` removes it."""


class TouchFiles:
    """Looks for the files and takes them away again.

    Args:
        run_dir: the run's folder; None: nobody can ask.
    """

    def __init__(self, run_dir: Path | None) -> None:
        """Look for nothing yet."""
        self._folder = run_dir

    @property
    def save(self) -> bool:
        """Whether somebody wants a checkpoint now."""
        return self._folder is not None and (self._folder / SAVE).exists()

    @property
    def stop(self) -> bool:
        """Whether somebody wants the training to end here."""
        return self._folder is not None and (self._folder / STOP).exists()

    def saved(self) -> None:
        """Say that a checkpoint was written."""
        if self._folder is not None:
            (self._folder / SAVE).unlink(missing_ok=True)

    def stopped(self) -> None:
        """Say that the training ends because of STOP."""
        if self._folder is not None:
            (self._folder / STOP).replace(self._folder / STOPPED)
