"""What every contender of the GRPO benchmark is given; knows no contender.

Random Llamas of three sizes, prompts of one length, and an end token outside the
model's vocabulary: no contender can sample it, so every completion has its full length
and nobody pays for a special rule that says so.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

PROMPTS = 8
GENERATIONS = 8
PROMPT_TOKENS = 16
NEW_TOKENS = 64
TOKENS_PER_STEP = PROMPTS * GENERATIONS * NEW_TOKENS
LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.0
MAX_GRAD_NORM = 1.0
SEED = 7


@dataclass(frozen=True, kw_only=True)
class Size:
    """Shape of a random Llama; half as many heads for keys and values."""

    hidden: int
    ffn: int
    layers: int
    vocab: int

    @property
    def heads(self) -> int:
        """Of 32 channels each, the least that vLLM has CPU kernels for."""
        return self.hidden // 32


SIZES = {
    "0.13 M": Size(hidden=64, ffn=96, layers=4, vocab=131),
    "0.8 M": Size(hidden=128, ffn=192, layers=6, vocab=500),
    "4.6 M": Size(hidden=256, ffn=480, layers=8, vocab=500),
}


def reward(response: str) -> float:
    """Share of different words: varies within a group, costs nothing."""
    return len(set(response.split())) / NEW_TOKENS


def prompts(size: Size) -> list[str]:
    """Eight steps' worth of prompts of ``PROMPT_TOKENS`` words each."""
    return [
        " ".join(
            f"w{(row * row + row * i + i) % size.vocab}" for i in range(PROMPT_TOKENS)
        )
        for row in range(8 * PROMPTS)
    ]


def write_model(size: Size, folder: Path) -> int:
    """Write model and tokenizer in Hugging Face's layout; returns the parameters."""
    import torch
    import transformers

    torch.manual_seed(SEED)
    config = transformers.LlamaConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        intermediate_size=size.ffn,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads // 2,
        head_dim=size.hidden // size.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=size.vocab,
        initializer_range=0.05,
    )
    model = transformers.LlamaForCausalLM(config).float()
    model.save_pretrained(folder)
    _tokenizer(size).save_pretrained(folder)
    (folder / "prompts.json").write_text(json.dumps(prompts(size)))
    return sum(parameter.numel() for parameter in model.parameters())


def _tokenizer(size: Size):
    """One word per token; the end token is the first id the model does not have."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [*(f"w{i}" for i in range(size.vocab)), "<end>"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<end>", eos_token="<end>"
    )
