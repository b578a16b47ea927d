"""The contenders of the GRPO benchmark: each trains in a process of its own.

A contender runs its own training loop. Between two steps it waits at a ``Gate`` until
the benchmark lets it make the next one, and reports what the last step did.
"""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks import workload

_ENDLESS = 100_000


class Gate:
    """Where a contender waits between steps; the benchmark holds the other end."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.work = {"generated": 0, "trained": 0, "updates": 0}

    def wait(self) -> None:
        """Report the work since the last call and wait for leave to go on.

        Raises:
            SystemExit: the benchmark is over.
        """
        self._pipe.send(self.work)
        self.work = dict.fromkeys(self.work, 0)
        if self._pipe.recv() != "go":
            raise SystemExit(0)


def run(name: str, folder: Path, threads: int, pipe: Connection) -> None:
    """Entry of a contender's process.

    Args:
        name: a key of ``CONTENDERS``.
        folder: model folder made by ``workload.write_model``.
        threads: CPU threads of the contender.
        pipe: to the benchmark.
    """
    import torch

    torch.set_num_threads(threads)
    prompts = json.loads((folder / "prompts.json").read_text())
    CONTENDERS[name](folder, prompts, Gate(pipe), threads)


def nemo_rl_local(folder: Path, prompts: list[str], gate: Gate, threads: int) -> None:
    """GRPOTrainer of nemo_rl with its engine in this process."""
    from nemo_rl.algorithms.grpo.trainer import GRPOTrainer
    from nemo_rl.distributed.local import LocalCluster

    class InProcessTrainer(GRPOTrainer):
        def _setup_cluster(self) -> None:
            super()._setup_cluster()  # reserves nothing until a worker starts
            self.cluster = LocalCluster()

    _fit_nemo_rl(InProcessTrainer, folder, prompts, gate, threads)


def nemo_rl_ray(folder: Path, prompts: list[str], gate: Gate, threads: int) -> None:
    """GRPOTrainer of nemo_rl as it comes: Ray and one worker process."""
    from nemo_rl.algorithms.grpo.trainer import GRPOTrainer

    _fit_nemo_rl(GRPOTrainer, folder, prompts, gate, threads)


def nemo_rl_vllm(folder: Path, prompts: list[str], gate: Gate, threads: int) -> None:
    """The same with a vLLM engine beside the worker, sent all weights every step."""
    from nemo_rl.algorithms.grpo.trainer import GRPOTrainer

    engine = {"backend": "vllm", "ignore_eos": True}
    _fit_nemo_rl(GRPOTrainer, folder, prompts, gate, threads, engine)


def _fit_nemo_rl(
    trainer_class: type,
    folder: Path,
    prompts: list[str],
    gate: Gate,
    threads: int,
    generation: dict[str, Any] | None = None,
) -> None:
    from nemo_rl.trainers.callbacks import Callback

    def reward(prompt: str, response: str) -> float:
        return workload.reward(response)

    class AtTheGate(Callback):
        def on_step_begin(self, trainer: Any, step: int) -> None:
            gate.wait()

        def on_step_end(self, trainer: Any, step: int, metrics: dict) -> None:
            rows = metrics["num_completions"]
            prompt_tokens = rows * workload.PROMPT_TOKENS
            gate.work["generated"] += int(metrics["total_tokens"] - prompt_tokens)
            gate.work["trained"] += int(metrics["global_valid_tokens"])
            gate.work["updates"] += metrics["num_updates"]

    recipe = _nemo_rl_recipe(folder, threads)
    recipe["policy"]["generation"] |= generation or {}
    trainer = trainer_class(recipe)
    rows = [{"prompt": prompt} for prompt in prompts]
    trainer.fit(rows, reward, callbacks=[AtTheGate()])


def _nemo_rl_recipe(folder: Path, threads: int) -> dict[str, Any]:
    rows = workload.PROMPTS * workload.GENERATIONS
    return {
        "policy": {
            "model_name": str(folder),
            "precision": "float32",
            "train_global_batch_size": rows,
            "train_micro_batch_size": rows,
            "max_total_sequence_length": workload.PROMPT_TOKENS + workload.NEW_TOKENS,
            "max_grad_norm": workload.MAX_GRAD_NORM,
            "optimizer": {
                "kwargs": {
                    "lr": workload.LEARNING_RATE,
                    "weight_decay": workload.WEIGHT_DECAY,
                }
            },
            "generation": {"max_new_tokens": workload.NEW_TOKENS},
        },
        "grpo": {
            "num_prompts_per_step": workload.PROMPTS,
            "num_generations_per_prompt": workload.GENERATIONS,
            "max_num_steps": _ENDLESS,
            "max_num_epochs": _ENDLESS,
            "seed": workload.SEED,
        },
        "loss_fn": {"reference_policy_kl_penalty": 0.0},
        "checkpointing": {"enabled": False},
        "logger": {
            "log_dir": str(folder / "logs"),
            "tensorboard_enabled": False,
            "monitor_gpus": False,
            "console": "off",
            "save_rollouts": False,
        },
        "cluster": {
            "gpus_per_node": 0,
            "cpu_workers_per_node": 1,
            "num_cpus_per_worker": threads,
        },
    }


def trl(folder: Path, prompts: list[str], gate: Gate, threads: int) -> None:
    """GRPOTrainer of TRL; defaults that cost time and add no work here are off."""
    import datasets
    import transformers
    from trl import GRPOConfig, GRPOTrainer

    def reward(completions: list[str], completion_ids: list, **_: Any) -> list[float]:
        gate.work["generated"] += sum(len(ids) for ids in completion_ids)
        return [workload.reward(text) for text in completions]

    class AtTheGate(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            gate.wait()

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            gate.work["updates"] += 1

    class CountingTrainer(GRPOTrainer):
        def _compute_loss(self, model: Any, inputs: dict) -> Any:
            gate.work["trained"] += int(inputs["completion_mask"].sum())
            return super()._compute_loss(model, inputs)

    trainer = CountingTrainer(
        model=str(folder),
        reward_funcs=reward,
        args=GRPOConfig(**_trl_arguments(folder)),
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
        callbacks=[AtTheGate()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()


def _trl_arguments(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "trl"),
        "use_cpu": True,
        "bf16": False,
        "model_init_kwargs": {"dtype": "float32"},
        "gradient_checkpointing": False,
        "per_device_train_batch_size": workload.PROMPTS * workload.GENERATIONS,
        "gradient_accumulation_steps": 1,
        "num_generations": workload.GENERATIONS,
        "max_completion_length": workload.NEW_TOKENS,
        "num_iterations": 1,
        "beta": 0.0,
        "temperature": 1.0,
        "learning_rate": workload.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": workload.WEIGHT_DECAY,
        "max_grad_norm": workload.MAX_GRAD_NORM,
        "max_steps": _ENDLESS,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": workload.SEED,
    }


def bare_torch(folder: Path, prompts: list[str], gate: Gate, threads: int) -> None:
    """The loop of ``bare_loop.py``."""
    import torch
    import transformers

    from benchmarks.bare_loop import BareLlama, generate, policy_loss

    del threads  # set for the whole process
    model = BareLlama(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = torch.tensor(tokenizer(prompts)["input_ids"])
    weights = list(model.weights.values())
    optimizer = torch.optim.AdamW(
        weights,
        workload.LEARNING_RATE,
        weight_decay=workload.WEIGHT_DECAY,
        fused=True,
    )
    torch.manual_seed(workload.SEED)
    for step in range(_ENDLESS):
        gate.wait()
        rows = torch.arange(workload.PROMPTS) + step * workload.PROMPTS
        starts = encoded[rows % len(encoded)]
        ids = generate(
            model,
            starts.repeat_interleave(workload.GENERATIONS, 0),
            workload.NEW_TOKENS,
        )
        width = starts.shape[1]
        texts = tokenizer.batch_decode(ids[:, width:])
        scores = torch.tensor([workload.reward(text) for text in texts])
        loss = policy_loss(model, ids, width, scores.view(workload.PROMPTS, -1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, workload.MAX_GRAD_NORM)
        optimizer.step()
        tokens = ids[:, width:].numel()
        gate.work = {"generated": tokens, "trained": tokens, "updates": 1}


CONTENDERS = {
    "nemo_rl, one process": nemo_rl_local,
    "nemo_rl, Ray with 1 worker": nemo_rl_ray,
    "nemo_rl, Ray, vLLM": nemo_rl_vllm,
    "TRL": trl,
    "bare torch": bare_torch,
}
