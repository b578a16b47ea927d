"""GRPO that samples ahead with a real engine of vLLM, which is killed on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.functional import tiny_task
from tests.functional.ranks import run_ranks

STEPS, KILLED_IN = 6, 3


def recipe(model: str, folder: Path) -> dict[str, Any]:
    """One process trains, an engine beside it samples one step ahead."""
    values = tiny_task.recipe(Path(model), workers=1)
    values["policy"]["generation"] = {
        "backend": "vllm",
        "max_new_tokens": 5,
        "colocated": {"enabled": False, "resources": {"cpu_workers_per_node": 1}},
    }
    ahead = {
        "enabled": True,
        "max_staleness_steps": 1,
        "in_flight_weight_updates": True,
    }
    values["grpo"] |= {
        "max_num_steps": STEPS,
        "val_period": 0,
        "val_at_start": False,
        "val_at_end": False,
        "async_grpo": ahead,
    }
    values["loss_fn"] |= {
        "use_importance_sampling_correction": True,
        "truncated_importance_sampling_ratio": 2.0,
    }
    values["cluster"]["cpu_workers_per_node"] = 2
    values["checkpointing"] = {"enabled": False}
    values["logger"] |= {"log_dir": str(folder / "logs"), "console": "off"}
    return values


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

    trainer = GRPOTrainer(recipe(model, folder))
    result = trainer.fit(callbacks=[Killer()])
    return {"history": result.history, "restarts": result.restarts}


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
    # Heads of 32 channels, the least that vLLM has CPU kernels for.
    return str(tiny_task.make_model(folder, sft_steps=60, heads=2, kv_heads=1))
