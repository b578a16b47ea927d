"""Packed weights of vLLM's CPU kernels: a readable copy, and proof that both are one.

On a CPU vLLM packs the matrix of a linear layer or of experts for its kernels and drops
the weight it came from, so nothing could be compared with what was sent. It also packs
too seldom after a reload: an output layer that is tied to the embedding keeps its old
packed matrix, and experts are not packed again at all. ``keep_readable`` keeps the
weights and packs experts again, ``repack_tied`` mends the tied output layer, and
``stale_layers`` looks for any layer that is left.
On a GPU nothing is packed and nothing here has an effect.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

READABLE = "nemo_rl_readable"
"""Attribute of a layer of experts: parameter name to the weight before packing."""
_COLUMNS = 16
"""Columns of a packed matrix that are read back, to the bit."""
_ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of two ways to add products up, as a share of their size."""


def keep_readable() -> None:
    """Make vLLM keep the weights that it packs, in this process, from now on.

    Call it before the model is built; twice is as good as once. Weights then take twice
    the memory. Nothing happens on other platforms than a CPU.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers import utils
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
        UnquantizedFusedMoEMethod,
    )

    _replace(utils, "dispatch_cpu_unquantized_gemm", _without_removal)
    _replace(UnquantizedFusedMoEMethod, "_setup_kernel", _with_readable_experts)


def _replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    current = getattr(owner, name)
    if not getattr(current, "keeps_readable", False):
        changed = wrap(current)
        changed.keeps_readable = True
        setattr(owner, name, changed)


def _without_removal(dispatch: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(dispatch)
    def keeping(layer: nn.Module, remove_weight: bool) -> None:
        dispatch(layer, remove_weight=False)

    return keeping


def _with_readable_experts(setup: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(setup)
    def keeping(self: Any, layer: nn.Module, w13: Tensor, w2: Tensor) -> None:
        again = self.moe_kernel is not None
        readable = {
            "w13_weight": w13.detach().clone(),
            "w2_weight": w2.detach().clone(),
        }
        setup(self, layer, w13, w2)
        if again:  # vLLM packs at the first load alone
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)
        setattr(layer, READABLE, readable)

    return keeping


def readable_parameter(layer: nn.Module, name: str) -> Tensor | None:
    """A parameter as it was loaded; None where only a packed form is left.

    Args:
        layer: a layer of a vLLM model.
        name: of its parameter: ``"weight"``, ``"w13_weight"`` ...
    """
    kept = getattr(layer, READABLE, {}).get(name)
    if kept is not None:
        return kept
    parameter = getattr(layer, name, None)
    if not isinstance(parameter, Tensor) or parameter.is_meta or not parameter.numel():
        return None
    return None if name in _PACKED_IN_PLACE and _packs_experts(layer) else parameter


_PACKED_IN_PLACE = ("w13_weight", "w2_weight")


def _packs_experts(layer: nn.Module) -> bool:
    experts = _cpu_experts(layer)
    return experts is not None and not experts._use_zentorch


def _cpu_experts(layer: nn.Module) -> Any:
    """The CPU kernel of a layer of experts; None for any other layer."""
    kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
    experts = getattr(kernel, "fused_experts", None)
    return experts if hasattr(experts, "_use_zentorch") else None


def repack_tied(model: nn.Module) -> int:
    """Pack tied output layers anew, from the embedding; how many there were.

    Call it after every reload. The reload fills the embedding's parameter, which a tied
    output layer shares, but packs the embedding alone.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        VocabParallelEmbedding,
    )
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return 0
    from vllm.model_executor.layers import utils

    embeddings, heads = {}, []
    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            heads.append(layer)
        elif isinstance(layer, VocabParallelEmbedding):
            embeddings[layer.weight.data_ptr()] = layer
    tied = [head for head in heads if head.weight.data_ptr() in embeddings]
    for head in tied:
        head.weight = embeddings[head.weight.data_ptr()].weight
        utils.dispatch_cpu_unquantized_gemm(head, remove_weight=False)
    return len(tied)


@torch.no_grad()
def stale_layers(model: nn.Module, *, seed: int = 0) -> list[str]:
    """Names of layers whose packed matrix is not the weight that they show.

    A packed matrix cannot be read, so it is asked: unit vectors give whole columns back
    to the bit, a dense vector a sum over all columns up to rounding. Experts are packed
    a second time and compared to the bit.

    Args:
        model: a vLLM model.
        seed: chooses the columns and the vector.
    """
    names = []
    for name, layer in model.named_modules(remove_duplicate=False):
        if _cpu_experts(layer) is not None:
            if not _experts_agree(layer):
                names.append(name)
            continue
        weight = getattr(layer, "weight", None)
        run = getattr(layer, "cpu_linear", None)
        if run is None or not isinstance(weight, Tensor) or weight.dim() != 2:
            continue
        if weight.numel() and not _linear_agrees(run, weight.data, seed):
            names.append(name)
    return names


def _linear_agrees(run: Callable[..., Tensor], weight: Tensor, seed: int) -> bool:
    columns = weight.shape[1]
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(columns, generator=generator)[:_COLUMNS]
    units = torch.zeros(len(chosen), columns, dtype=weight.dtype)
    units[torch.arange(len(chosen)), chosen] = 1.0
    dense = torch.randn(1, columns, generator=generator).to(weight.dtype)
    # A value that is not finite spreads over a whole row, in both ways alike.
    exact = torch.nan_to_num(weight[:, chosen].T.float())
    finite = torch.isfinite(weight).all(dim=1)
    got = torch.nan_to_num(run(units, weight, None).float())
    if not torch.equal(got[:, finite], exact[:, finite]):
        return False
    got = run(dense, weight, None).float()[0, finite]
    expected = F.linear(dense.float(), weight.float())[0, finite]
    size = F.linear(dense.float().abs(), weight.float().abs())[0, finite]
    tolerance = _ROUNDING.get(weight.dtype, 5e-2)
    return bool(((got - expected).abs() <= tolerance * size + 1e-30).all())


def _experts_agree(layer: nn.Module) -> bool:
    from vllm import _custom_ops as ops

    experts, kept = _cpu_experts(layer), getattr(layer, READABLE, None)
    if kept is None:
        return True  # what is held cannot be read either, and is reported for that
    for name, weight in kept.items():
        packed = getattr(layer, name).data
        expected = _padded(weight, packed.shape, halves=name.startswith("w13"))
        if not experts._use_zentorch:
            expected = ops.cpu_prepack_moe_weight(expected, experts.isa)
        if not torch.equal(packed.view(torch.uint8), expected.view(torch.uint8)):
            return False
    return True


def _padded(weight: Tensor, shape: torch.Size, *, halves: bool) -> Tensor:
    """Experts with zeros up to a shape; gate and up projection are padded apart."""
    if weight.shape == shape:
        return weight
    padded = weight.new_zeros(shape)
    for old, new in zip(
        weight.chunk(2 if halves else 1, dim=1),
        padded.chunk(2 if halves else 1, dim=1),
        strict=True,
    ):
        new[:, : old.shape[1], : old.shape[2]] = old
    return padded
