"""oneDNN's product and Megatron's linear on it, against torch's own."""

import pytest
import torch
from torch.nn import functional

from nemo_rl.backends.platform import cpu_linear
from tests.functional.ranks import run_ranks


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 3, 400])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("onednn", [True, False])
def test_matmul_equals_torch_below_and_above_the_threshold(
    monkeypatch, rows, bias, onednn
):
    monkeypatch.setattr(cpu_linear, "_USE_ONEDNN", onednn)
    x, weight = random(rows, 96), random(64, 96, seed=1)
    extra = random(64, seed=2) if bias else None
    want = functional.linear(x, weight, extra)
    torch.testing.assert_close(cpu_linear.matmul(x, weight, extra), want)
    assert (cpu_linear._WORTH_ONEDNN <= 400 * 96 * 64) and (
        cpu_linear._WORTH_ONEDNN > 3 * 96 * 64
    )


def test_matmul_of_a_transposed_weight_and_of_bfloat16():
    x, weight = random(400, 64), random(64, 96, seed=1)
    torch.testing.assert_close(cpu_linear.matmul(x, weight.t()), x @ weight)
    half = cpu_linear.matmul(x.bfloat16(), weight.t().bfloat16())
    assert half.dtype is torch.bfloat16


@pytest.mark.parametrize("shape", [(5, 2, 96), (200, 2, 96), (0, 1, 96)])
@pytest.mark.parametrize("wide", [48, 192])
def test_linear_and_its_gradients_equal_torch(shape, wide):
    results = []
    for function in (_ours, functional.linear):
        x = random(*shape).requires_grad_()
        weight = random(wide, 96, seed=1).requires_grad_()
        bias = random(wide, seed=2).requires_grad_()
        out = function(x, weight, bias)
        (out * random(*out.shape, seed=3)).sum().backward()
        results.append((out.detach(), x.grad, weight.grad, bias.grad))
    for mine, torchs in zip(*results, strict=True):
        torch.testing.assert_close(mine, torchs, atol=2e-4, rtol=1e-4)


def _ours(x, weight, bias):
    return cpu_linear.linear(x, weight, bias, False, False, False)


def test_no_graph_is_kept_without_gradients():
    with torch.no_grad():
        out = _ours(random(3, 2, 96), random(48, 96).requires_grad_(), None)
    assert out.shape == (3, 2, 48) and out.grad_fn is None


@pytest.mark.parametrize("flag", ["gradient_accumulation_fusion", "sequence_parallel"])
def test_what_needs_a_gpu_is_refused(flag):
    flags = dict.fromkeys(
        ("gradient_accumulation_fusion", "allreduce_dgrad", "sequence_parallel"), False
    )
    with pytest.raises(NotImplementedError, match="need a GPU"):
        cpu_linear.linear(random(2, 96), random(48, 96), None, **{**flags, flag: True})


def _summed_gradient(rank):
    import torch.distributed as dist

    dist.init_process_group(
        "gloo",
        init_method=rank.init_method,
        rank=rank.rank,
        world_size=rank.world_size,
    )
    x = random(4, 96).requires_grad_()
    weight = random(48, 96, seed=rank.rank + 1)
    group = dist.group.WORLD
    out = cpu_linear.linear(x, weight, None, False, True, False, tp_group=group)
    out.sum().backward()
    return x.grad


def test_the_gradient_of_the_input_is_summed_over_tensor_parallel_ranks():
    want = sum(random(48, 96, seed=r + 1).sum(0) for r in range(2)).expand(4, 96)
    for got in run_ranks(_summed_gradient, 2):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
