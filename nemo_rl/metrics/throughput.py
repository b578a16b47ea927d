"""Speed: the work that the model asks for, per second and worker; arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence


def training_flops(
    lengths: Sequence[int], *, parameters: int, layers: int, attention_width: int
) -> float:
    """Floating-point operations of forward and backward over some sequences.

    Two per parameter and token; causal attention counted as half of the square; three
    times that with the backward pass (Narayanan et al. 2021, arXiv:2104.04473, section
    5.1). Recomputation is not work done.

    Args:
        lengths: tokens of every sequence.
        parameters: weights that a token is multiplied with.
        layers: transformer layers.
        attention_width: query heads times head size.
    """
    squares = sum(length * length for length in lengths)
    attention = 2.0 * layers * attention_width * squares
    return 3.0 * (2.0 * parameters * sum(lengths) + attention)


def tflops_per_worker(flops: float, seconds: float, world_size: int) -> float:
    """Tera-operations per second of each of ``world_size`` GPUs or CPU processes."""
    return flops / max(seconds, 1e-9) / world_size / 1e12
