"""GRPO that samples ahead with a real engine of vLLM, which is killed on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.async_vs_sync import recipe, write_model
from tests.functional.ranks import run_ranks

STEPS, KILLED_IN = 6, 3


def _trained(_: Any, model: str, folder: Path) -> dict[str, Any]:
    from nemo_rl.algorithms.grpo.trainer import GRPOTrainer
    from nemo_rl.trainers.callbacks import Callback

    class Killer(Callback):
        """Kills the engine's process as soon as it has responses under way."""

        def on_step_begin(self, trainer: Any, step: int) -> None:
            if step == KILLED_IN:
                threading.Thread(target=self._kill, args=(trainer,)).start()

        def _kill(self, trainer: Any) -> None:
            [engine] = trainer.policy.stream.replicas
            while not engine.load:
                time.sleep(0.001)
            os.kill(engine.place.pid, signal.SIGKILL)

        def on_train_end(self, trainer: Any, result: Any) -> None:
            [engine] = trainer.policy.stream.replicas
            result.restarts = engine.restarts

    values = recipe(Path(model), folder, 1, STEPS)
    del values["policy"]["generation"]["guard"]  # all of it
    trainer = GRPOTrainer(values)
    result = trainer.fit(callbacks=[Killer()])
    return {"history": result.history, "restarts": result.restarts}


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_async_goes_on_after_its_engine_was_killed(tmp_path: Path) -> None:
    (model,) = run_ranks(_model, 1, tmp_path / "model")
    (found,) = run_ranks(_trained, 1, model, tmp_path, timeout_s=250)
    history = found["history"]
    assert found["restarts"] == 1
    assert [metrics["step"] for metrics in history] == [*range(1, STEPS + 1)]
    assert max(metrics["staleness_max"] for metrics in history) <= 1
    sizes = {metrics["num_completions"] for metrics in history}
    assert len(sizes) == 1  # no response was lost
    assert all(metrics["guard/digest_mismatches"] == 0 for metrics in history)
    assert all(metrics["guard/canary_error_max"] < 1e-3 for metrics in history)


def _model(_: Any, folder: Path) -> str:
    return str(write_model(folder))
