"""Random tiny models in Hugging Face format, made offline; knows no nemo_rl."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

FAMILIES = ("llama", "qwen2", "qwen3")


def tiny_config(
    family: str,
    *,
    tied: bool = False,
    hidden: int = 64,
    layers: int = 4,
    vocab: int = 131,
    heads: int = 8,
    kv_heads: int = 4,
) -> transformers.PretrainedConfig:
    """A configuration whose 8 heads and 4 kv heads divide by 1, 2 and 4.

    The odd vocabulary makes every TP > 1 layout pad it.
    """
    classes = {
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
    }
    extra = {} if family == "qwen2" else {"head_dim": hidden // heads}
    return classes[family](
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=hidden * 3 // 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=256,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        attention_dropout=0.0,
        initializer_range=0.08,
        **extra,
    )


def build(config: transformers.PretrainedConfig, seed: int = 0) -> torch.nn.Module:
    """The Hugging Face model in fp32, with norms and biases away from their defaults.

    Norms of one and biases of zero would hide a weight that was never copied.
    """
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
        elif "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    return model


def save(folder: Path, family: str = "llama", *, seed: int = 0, **kwargs) -> Path:
    """Write a tiny model to ``folder`` and return it."""
    build(tiny_config(family, **kwargs), seed).save_pretrained(folder)
    return folder
