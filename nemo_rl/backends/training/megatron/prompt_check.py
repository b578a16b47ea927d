"""One prompt through Megatron and through transformers: the same logits, the same text.

Of a reward model the score is compared; it continues nothing.

    python -m nemo_rl.backends.training.megatron.prompt_check MEGATRON CONFIG HF

Both compute in float32, in this process, one after the other. What differs is then the
weights, or how they are used.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nemo_rl.backends.platform import setup
from nemo_rl.converters.bridge import find_weights
from nemo_rl.converters.families import model_spec
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.distributed.rank import RankInfo, find_free_port
from nemo_rl.utils.exceptions import NemoRLError

PROMPT = "The capital of France is"
NEW_TOKENS = 12
TOLERANCE = 1e-4
"""Of the largest logit: what float32 may differ in another order of summation."""


def prompt_ids(folder: Path, vocabulary: int) -> Tensor:
    """[1, S] ids of the prompt; without a tokenizer, the first ids there are."""
    tokenizer = _tokenizer(folder)
    if tokenizer is None:
        return torch.arange(1, min(9, vocabulary))[None]
    return torch.tensor([tokenizer(PROMPT)["input_ids"]])


def _tokenizer(folder: Path) -> Any:
    if not (folder / "tokenizer.json").exists():
        return None
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def by_transformers(folder: Path, ids: Tensor) -> tuple[Tensor, list[int]]:
    """Logits [S, V] of the prompt and the ids of its greedy continuation."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32
    )
    logits = model(ids).logits[0]
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        repetition_penalty=1.0,
    )
    return logits, out[0, ids.shape[1] :].tolist()


@torch.no_grad()
def score_by_transformers(folder: Path, ids: Tensor) -> tuple[Tensor, list[int]]:
    """The score of a prompt, and no continuation."""
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32
    )
    return model(ids).logits[0], []


@torch.no_grad()
def by_megatron(
    checkpoint: Path, config: Path, ids: Tensor
) -> tuple[Tensor, list[int]]:
    """As ``by_transformers``, of a distributed checkpoint."""
    from megatron.core import parallel_state

    platform = setup(
        RankInfo(
            rank=0,
            world_size=1,
            local_rank=0,
            master_port=find_free_port(),
            use_gpu=torch.cuda.is_available(),
        )
    )
    from nemo_rl.backends.generation.base import SamplingParams
    from nemo_rl.backends.generation.megatron import MegatronInferenceBackend
    from nemo_rl.backends.training.megatron.checkpoint import read_weights
    from nemo_rl.backends.training.megatron.model import build_model
    from nemo_rl.config.policy import PolicyConfig

    parallel_state.initialize_model_parallel()
    platform.seed(0)
    spec = model_spec(read_hf_config(config), source=str(config / "config.json"))
    policy = PolicyConfig.from_mapping(
        {"model_name": str(config), "precision": "float32"}
    )
    model, _ = build_model(spec, policy, platform)
    model.load_state_dict(read_weights(find_weights(checkpoint), model, None)["model"])
    model.eval()
    length = ids.shape[1]
    positions = torch.arange(length, device=platform.device)[None]
    logits = model(ids.to(platform.device), positions, None)[0, :, : spec.vocab_size]
    if spec.scored:
        return logits[-1].float().cpu(), []
    sampler = MegatronInferenceBackend()
    sampler.setup(SimpleNamespace(model=model, ddp=model, spec=spec, platform=platform))
    prompts = {
        "input_ids": ids,
        "input_lengths": torch.tensor([length]),
        "sampling_seed": torch.tensor([0]),
    }
    params = SamplingParams(
        max_new_tokens=NEW_TOKENS,
        max_total_length=length + NEW_TOKENS,
        temperature=0.0,
        stop_token_ids=(),
    )
    output = sampler.generate(prompts, params)
    return logits.float().cpu(), output["output_ids"][0, length:].tolist()


def check(checkpoint: Path, config: Path, folder: Path) -> dict[str, Any]:
    """Compare both stacks.

    Args:
        checkpoint: distributed checkpoint.
        config: folder of its ``config.json`` and tokenizer.
        folder: Hugging Face folder of the same model.

    Returns:
        ``difference`` (largest, of any logit), ``largest`` (logit), ``equal``, and
        prompt and continuations as text, or as ids where there is no tokenizer.
    """
    spec = model_spec(read_hf_config(config), source=str(config / "config.json"))
    ids = prompt_ids(folder, spec.vocab_size)
    ours, our_ids = by_megatron(checkpoint, config, ids)
    gc.collect()
    run = score_by_transformers if spec.scored else by_transformers
    theirs, their_ids = run(folder, ids)
    difference = (ours - theirs).abs().max().item()
    largest = theirs.abs().max().item()
    return {
        "difference": difference,
        "largest": largest,
        "equal": difference <= TOLERANCE * max(largest, 1.0) and our_ids == their_ids,
        "prompt": _text(folder, ids[0].tolist()),
        "megatron": _text(folder, our_ids),
        "transformers": _text(folder, their_ids),
    }


def _text(folder: Path, ids: list[int]) -> str:
    tokenizer = _tokenizer(folder)
    return " ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the result of ``check`` as JSON; exit code 1 where the stacks differ."""
    parser = argparse.ArgumentParser(prog="prompt_check", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(argv)
    try:
        result = check(options.checkpoint, options.config, options.folder)
    except NemoRLError as error:
        print(f"nemo_rl: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(result))
    return 0 if result["equal"] else 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Threads of the process group would keep the interpreter.
    os._exit(code)
