"""In the place of nemo_rl.launch.node: writes what an agent and a trainer write.

Takes the same command line; overrides say what happens: `steps=N`, `fail_at=N`
(exit code 1), `step_s=X`. The last step that was saved is where it goes on.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime

from nemo_rl.launch.account import of_driver
from nemo_rl.launch.allocation import Allocation
from nemo_rl.launch.bulletin import EXIT_CODE, Bulletin
from nemo_rl.launch.failure import record
from nemo_rl.launch.node import parse
from nemo_rl.launch.record import record_start
from nemo_rl.utils import env


def main() -> int:
    options = parse(sys.argv[3:])  # After "-m nemo_rl.launch.node".
    job = Allocation.from_environment(env.inherited())
    board = Bulletin(options.attempt_dir, job.node_name, ip="198.18.0.1")
    board.beat("training")
    if not job.is_head:
        while board.read(EXIT_CODE) is None:
            time.sleep(0.1)
        return 0
    record_start(
        options.run_dir,
        options.attempt_dir,
        job,
        recipe=options.recipe,
        overrides=options.overrides,
        temp_dir=options.temp_root / "nothing",
    )
    (options.attempt_dir / f"ray-{job.node_name}.log").write_text("Ray began\n")
    code = train(options, board)
    board.publish(EXIT_CODE, code)
    return code


def train(options, board) -> int:
    wanted = dict(text.split("=") for text in options.overrides)
    steps, fail_at = int(wanted.get("steps", 3)), int(wanted.get("fail_at", 0))
    run_dir = options.run_dir
    (run_dir / "resolved.yaml").write_text(
        "algorithm: grpo\n"
        f"grpo:\n  max_num_steps: {steps}\n"
        "policy:\n  model_name: tiny\n  learning_rate: 3.0e-05\n"
        f"logger:\n  log_dir: {run_dir}/logs\n"
    )
    (run_dir / "logs").mkdir(exist_ok=True)
    progress = run_dir / "PROGRESS"
    first = int(progress.read_text().rpartition("_")[2]) if progress.exists() else 0
    for step in range(first + 1, steps + 1):
        time.sleep(float(wanted.get("step_s", 0.05)))
        row = {
            "step": step,
            "time": datetime.now(UTC).isoformat(),
            "train/reward": step / steps,
            "timing/step_s": 0.05,
        }
        with (run_dir / "logs" / "metrics.jsonl").open("a") as file:
            print(json.dumps(row), file=file)
        print(f"step {step} of {steps}", flush=True)
        board.beat("training")
        if step == fail_at:
            print("ValueError: the loss is not finite", flush=True)
            account = {"message": "ValueError: the loss is not finite"}
            told = of_driver(board.node, 1, account, names=(board.node,), tail=())
            record(options.attempt_dir, told.explained())
            return 1
        if (run_dir / "PREEMPT").exists():
            progress.write_text(f"{run_dir}/checkpoints/step_{step:06d}\n")
            print("saved", flush=True)
            return 75
    progress.write_text(f"{run_dir}/checkpoints/step_{steps:06d}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
