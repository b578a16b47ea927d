"""Speed: tokens per second and device, and model FLOPs utilisation, from the shape.

Arithmetic only: no devices are asked, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "L40S": 362e12,
    "A10": 125e12,
}
"""Dense bfloat16 FLOP/s by name of the device, from the makers' data sheets (SXM)."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder that its FLOPs depend on.

    Attributes:
        layers: transformer layers.
        hidden: width of the residual stream.
        heads: query heads.
        kv_heads: key-value heads.
        head_dim: width of a head.
        ffn: width of the gated feed-forward layer.
        vocab: rows of the output projection.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read the values of a Hugging Face config.json.

        Raises:
            KeyError: a size is missing.
        """
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        return cls(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            ffn=int(config["intermediate_size"]),
            vocab=int(config["vocab_size"]),
        )

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with: no norms, no input embedding."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        feed_forward = 3 * self.hidden * self.ffn
        return self.layers * (attention + feed_forward) + self.hidden * self.vocab

    def forward_flops(self, tokens: int, mean_length: float) -> float:
        """FLOPs of one forward pass, causal attention counted as half of the square.

        Args:
            tokens: tokens of all sequences.
            mean_length: their mean length; attention grows with it.
        """
        attention = 2.0 * self.layers * self.heads * self.head_dim * mean_length
        return tokens * (2.0 * self.matmul_parameters + attention)

    def training_flops(self, tokens: int, mean_length: float) -> float:
        """FLOPs of forward and backward; recomputation does not count as work done."""
        return 3.0 * self.forward_flops(tokens, mean_length)


def peak_flops(device_name: str) -> float | None:
    """Peak of a device by its name ("NVIDIA H200"); None where it is not known."""
    words = device_name.upper().replace("-", " ").split()
    return next((PEAK_FLOPS[word] for word in words if word in PEAK_FLOPS), None)


def throughput_metrics(
    *,
    tokens: int,
    seconds: float,
    world_size: int,
    flops: float | None = None,
    peak_flops_per_device: float | None = None,
) -> dict[str, float]:
    """Speed of one step, or of a phase of it.

    Args:
        tokens: tokens that were processed by all workers.
        seconds: wall time.
        world_size: workers (GPUs, or CPU processes).
        flops: FLOPs of the model for these tokens, over all workers.
        peak_flops_per_device: see `peak_flops`.

    Returns:
        tokens_per_s, tokens_per_s_per_worker; where `flops` is given
        tflops_per_worker, and where the peak is known mfu (0 to 1). {} where no time
        has passed.
    """
    if seconds <= 0 or world_size < 1:
        return {}
    metrics = {
        "tokens_per_s": tokens / seconds,
        "tokens_per_s_per_worker": tokens / seconds / world_size,
    }
    if flops is not None:
        per_worker = flops / seconds / world_size
        metrics["tflops_per_worker"] = per_worker / 1e12
        if peak_flops_per_device:
            metrics["mfu"] = per_worker / peak_flops_per_device
    return metrics
