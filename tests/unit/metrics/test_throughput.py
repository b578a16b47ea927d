"""Model FLOPs against numbers worked out by hand."""

from __future__ import annotations

import pytest

from nemo_rl.metrics.throughput import tflops_per_worker, training_flops


def test_flops_of_a_training_pass():
    # Tokens: 3 * 2 * 10 * (2 + 3) = 300; attention: 3 * 2 * 4 * 8 * (4 + 9) = 2496.
    flops = training_flops([2, 3], parameters=10, layers=4, attention_width=8)
    assert flops == 300 + 2496


def test_attention_grows_with_the_square_of_a_length():
    def attention(lengths):
        return training_flops(lengths, parameters=0, layers=1, attention_width=1)

    assert attention([64]) == 4 * attention([32]) == 2 * attention([32, 32])


def test_rate_is_per_worker():
    assert tflops_per_worker(6e12, 2.0, 3) == pytest.approx(1.0)
    assert tflops_per_worker(0.0, 0.0, 1) == 0.0
