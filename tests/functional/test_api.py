"""The Python of the documentation, run as one script of its own: two runs, two Rays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.functional import tiny_task
from tests.functional.driver import environment
from tests.functional.ranks import run_ranks

TRAIN = """
import sys
import nemo_rl
from nemo_rl.trainers.callbacks import Callback

class Steps(Callback):
    seen = []
    def on_step_end(self, trainer, step, metrics):
        self.seen.append((step, metrics["reward"]))

rows = [{"prompt": f"{n:04d}>", "answer": f"{n:04d}"[::-1]} for n in range(12)]
result = nemo_rl.train(
    model=sys.argv[1],
    dataset=rows,
    reward_fn=lambda prompt, response: float(len(response)),
    algorithm="grpo",
    max_steps=2,
    learning_rate=1e-3,
    batch_size=4,
    num_generations_per_prompt=4,
    max_sequence_length=16,
    max_new_tokens=5,
    output_dir="out",
    callbacks=[Steps()],
)
assert result.status == "completed" and result.steps == 2, result
assert [step for step, _ in Steps.seen] == [1, 2]
assert all(0 <= reward <= 5 for _, reward in Steps.seen)
assert result.checkpoint_path.name == "step_000002"
assert (result.hf_export_path / "model.safetensors").exists()
assert list(result.tensorboard_dir.iterdir())
assert len(result.rollouts_path.read_text().splitlines()) == 2 * 16
print("RESULT", result.metrics["loss"])
"""

FIT = """
import sys
from nemo_rl import GRPOTrainer

def shorter(prompts: list[str], responses: list[str]) -> list[float]:
    return [-float(len(response)) for response in responses]

trainer = GRPOTrainer.from_pretrained(
    sys.argv[1], num_prompts_per_step=2, num_generations_per_prompt=2, max_steps=1,
    max_total_sequence_length=16, max_new_tokens=4, checkpointing={"enabled": False},
    cpu_workers_per_node=2, train_micro_batch_size=2,
)
result = trainer.fit(dataset="reverse_digits", reward_fn=shorter)
assert result.checkpoint_path is None and result.hf_export_path is None
assert result.metrics["reward"] <= 0
print("RESULT", result.steps)
"""


def _random(_, folder):
    return str(tiny_task.make_model(folder, sft_steps=0))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return run_ranks(_random, 1, tmp_path_factory.mktemp("api") / "model")[0]


def test_api_script(model, tmp_path: Path):
    """One process: the second run must not be disturbed by the first."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN + FIT, model],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.count("RESULT") == 2
