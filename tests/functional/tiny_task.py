"""A ~130k-parameter model that can be taught to write four digits backwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from nemo_rl.data.datasets.reverse import ReverseDigitsDataset
from tests.fakes import models
from tests.fakes.tokenizers import character_tokenizer

DATA = {
    "dataset_name": "reverse_digits",
    "dataset_kwargs": {"split": "train", "num_validation": 512},
    "val_dataset_name": "reverse_digits",
    "val_dataset_kwargs": {"split": "validation", "num_validation": 512},
}


def make_model(
    folder: Path, *, sft_steps: int, seed: int = 0, heads: int = 4, kv_heads: int = 2
) -> Path:
    """A random Llama after a few steps of supervised training on the train split.

    vLLM's CPU engine needs heads of 32 channels or more: 2 heads and 1 kv head.
    """
    torch.manual_seed(seed)
    tokenizer = character_tokenizer()
    config = models.tiny_config(
        "llama",
        tied=True,
        hidden=64,
        layers=2,
        heads=heads,
        kv_heads=kv_heads,
        vocab=len(tokenizer),
    )
    config.intermediate_size = 256
    config.initializer_range = 0.02
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    config.bos_token_id = None
    import transformers

    model = transformers.AutoModelForCausalLM.from_config(config).float()
    _supervise(model, tokenizer, sft_steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _supervise(model: Any, tokenizer: Any, steps: int) -> None:
    rows = ReverseDigitsDataset("train", num_validation=512)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(steps):
        chosen = [rows[(step * 64 + i) % len(rows)] for i in range(64)]
        texts = [row["prompt"] + row["answer"] for row in chosen]
        ids = torch.tensor(
            [[*tokenizer(t)["input_ids"], tokenizer.eos_token_id] for t in texts]
        )
        logits = model(ids[:, :-1]).logits[:, 4:]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 5:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def sampled_accuracy(folder: Path, *, seed: int = 1) -> float:
    """Exact answers on the 512 held-out prompts, sampled at temperature 1."""
    import transformers

    torch.manual_seed(seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )
    rows = ReverseDigitsDataset("validation", num_validation=512)
    rows = [rows[i] for i in range(len(rows))]
    ids = torch.tensor([tokenizer(row["prompt"])["input_ids"] for row in rows])
    for _ in range(5):
        probs = torch.softmax(model(ids).logits[:, -1], -1)
        ids = torch.cat([ids, torch.multinomial(probs, 1)], 1)
    wanted = [
        [*tokenizer(row["answer"])["input_ids"], tokenizer.eos_token_id] for row in rows
    ]
    return (ids[:, 5:] == torch.tensor(wanted)).all(1).float().mean().item()


@torch.no_grad()
def pair_scores(folder: Path, pairs: Path) -> tuple[float, float]:
    """Share of pairs that transformers scores the right way round, and their margin."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32
    )
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    texts = [
        row["prompt"] + row[name] + tokenizer.eos_token
        for row in rows
        for name in ("chosen", "rejected")
    ]
    scores = [
        model(tokenizer(text, return_tensors="pt").input_ids).logits for text in texts
    ]
    chosen, rejected = torch.cat(scores).view(-1, 2).unbind(-1)
    return (chosen > rejected).float().mean().item(), (chosen - rejected).mean().item()


def sft_recipe(model: Path) -> dict[str, Any]:
    """SFT on the task under TP2: 64 answers a step, 80 steps."""
    return {
        **_common(model, lr=2.0e-3, tp=2),
        "algorithm": "sft",
        "sft": {
            "batch_size": 64,
            "max_num_steps": 80,
            "val_period": 40,
            "val_batches": 4,
            "val_global_batch_size": 64,
        },
        "data": {**DATA, "response_key": "answer"},
    }


def pairs_recipe(algorithm: str, model: Path, pairs: Path) -> dict[str, Any]:
    """20 steps on 448 pairs of the right and a wrong answer: dpo (PP2) or rm (TP2)."""
    layout = {"pp": 2} if algorithm == "dpo" else {"tp": 2}
    pairs.parent.mkdir(parents=True, exist_ok=True)
    return {**_common(model, lr=1.0e-3, **layout), **_pairs(algorithm, pairs)}


def distillation_recipe(model: Path, teacher: Path) -> dict[str, Any]:
    """Distillation of a better model under TP2: 64 responses a step, 40 steps."""
    recipe = _common(model, lr=2.0e-3, tp=2)
    recipe["policy"]["generation"] = {"max_new_tokens": 5}
    return {
        **recipe,
        "algorithm": "distillation",
        "teacher": {"model_name": str(teacher)},
        "distillation": {
            "num_prompts_per_step": 64,
            "max_num_steps": 40,
            "topk_logits_k": None,
            "val_period": 40,
            "val_at_start": True,
        },
        "data": DATA,
    }


def _pairs(algorithm: str, pairs: Path) -> dict[str, Any]:
    rows = ReverseDigitsDataset("train", num_validation=512)
    chosen = [rows[i] for i in range(512)]
    lines = [
        json.dumps(
            {
                "prompt": row["prompt"],
                "chosen": row["answer"],
                "rejected": row["answer"][1:] + row["answer"][:1],
            }
        )
        for row in chosen
        if len(set(row["answer"])) > 1
    ]
    held_out = pairs.with_name("held_out.jsonl")
    pairs.write_text("\n".join(lines[:448]))
    held_out.write_text("\n".join(lines[448:]))
    return {
        "algorithm": algorithm,
        algorithm: {
            "batch_size": 32,
            "max_num_steps": 20,
            "max_num_epochs": 2,
            "val_period": 20,
            "val_at_start": True,
        },
        "data": {"dataset_name": str(pairs), "val_dataset_name": str(held_out)},
    }


def _common(model: Path, *, lr: float, tp: int = 1, pp: int = 1) -> dict[str, Any]:
    return {
        "policy": {
            "model_name": str(model),
            "precision": "float32",
            "train_micro_batch_size": 16,
            "max_total_sequence_length": 16,
            "optimizer": {"kwargs": {"lr": lr, "weight_decay": 0.0}},
            "megatron_cfg": {
                "tensor_model_parallel_size": tp,
                "pipeline_model_parallel_size": pp,
            },
        },
        "checkpointing": {"save_period": 1000},
        "logger": {"monitor_gpus": False},
        "cluster": {"gpus_per_node": 0, "cpu_workers_per_node": 2},
    }


def recipe(
    model: Path, *, tp: int = 1, pp: int = 1, workers: int = 2
) -> dict[str, Any]:
    """GRPO on the task: 32 prompts x 8 samples, 180 steps."""
    return {
        "policy": {
            "model_name": str(model),
            "precision": "float32",
            "train_micro_batch_size": 256 // (workers // (tp * pp)) // pp,
            "max_total_sequence_length": 16,
            "optimizer": {
                "kwargs": {"lr": 7.0e-4, "weight_decay": 0.0, "betas": [0.9, 0.99]}
            },
            "megatron_cfg": {
                "tensor_model_parallel_size": tp,
                "pipeline_model_parallel_size": pp,
            },
            "generation": {"max_new_tokens": 5},
        },
        "grpo": {
            "num_prompts_per_step": 32,
            "num_generations_per_prompt": 8,
            "max_num_steps": 180,
            "max_num_epochs": 100,
            "val_period": 90,
            "val_at_start": True,
            "use_leave_one_out_baseline": False,
        },
        "loss_fn": {"reference_policy_kl_penalty": 0.0, "ratio_clip_max": 0.28},
        "data": DATA,
        "checkpointing": {"save_period": 1000, "metric_name": None},
        "logger": {"monitor_gpus": False, "save_rollouts": False},
        "cluster": {"gpus_per_node": 0, "cpu_workers_per_node": workers},
    }
