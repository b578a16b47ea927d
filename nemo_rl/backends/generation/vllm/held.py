"""What a vLLM worker holds, read back under Hugging Face names, as digests of its bits.

Every tensor that was sent is looked up in vLLM's model by the model's own table of
names; where in the full tensor its slice lies follows from the kind of layer and the
rank, independently of the loader that put it there. Nothing is guessed: a tensor whose
layer, dtype or shape no rule here covers is reported as such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nemo_rl.backends.generation.vllm.cpu_weights import (
    readable_parameter,
    stale_layers,
)
from nemo_rl.backends.refit.base import TensorSpec
from nemo_rl.backends.refit.digest import dtype_name, tensor_digest
from nemo_rl.backends.refit.held import RankWeights


@dataclass(frozen=True)
class Piece:
    """A slice of a Hugging Face tensor that this rank holds.

    Attributes:
        data: a view of vLLM's parameter.
        offset: of the slice in the full tensor, per dimension.
        owner: the parameter's ``id``.
    """

    data: Tensor
    offset: tuple[int, ...]
    owner: int


class Uncovered(Exception):  # noqa: N818 - a finding and no failure
    """No rule reads this tensor; the message says why."""


def held_weights(
    model: nn.Module, specs: Iterable[TensorSpec], *, seed: int = 0
) -> RankWeights:
    """Digests of everything this rank holds of the tensors that were sent.

    Args:
        model: vLLM's, on this tensor-parallel rank.
        specs: all tensors of the plan.
        seed: of the probe for packed matrices, see ``stale_layers``.
    """
    parts: dict[str, list[tuple[tuple[int, ...], tuple[int, ...], int]]] = {}
    uncovered: dict[str, str] = {}
    non_finite: dict[str, int] = {}
    rounded: dict[str, str] = {}
    filled: dict[int, int] = {}
    for spec in specs:
        full = tuple(spec.shape)
        try:
            pieces = [
                _as_sent(piece, spec.torch_dtype, full)
                for piece in held_pieces(model, spec.name, full)
            ]
        except Uncovered as reason:
            uncovered[spec.name] = str(reason)
            continue
        parts[spec.name] = [
            (
                piece.offset,
                tuple(piece.data.shape),
                tensor_digest(piece.data, offset=piece.offset, full_shape=full),
            )
            for piece in pieces
        ]
        for piece in pieces:
            if piece.data.dtype != spec.torch_dtype:
                rounded[spec.name] = dtype_name(piece.data.dtype)
            filled[piece.owner] = filled.get(piece.owner, 0) + piece.data.numel()
        if broken := sum(_not_finite(piece.data) for piece in pieces):
            non_finite[spec.name] = broken
    return RankWeights(
        parts=parts,
        uncovered=uncovered,
        stale=stale_layers(model, seed=seed),
        non_finite=non_finite,
        # What a tensor that no rule reads went into is not known.
        unsent=[] if uncovered else _unsent(model, filled),
        rounded=rounded,
    )


def unsent_parameters(model: nn.Module, specs: Iterable[TensorSpec]) -> list[str]:
    """Parameters of a model that tensors like these do not fill; reads no value.

    Args:
        model: vLLM's, on this tensor-parallel rank.
        specs: all tensors that were sent.

    Returns:
        vLLM's names of them; none where a tensor is read by no rule here.
    """
    filled: dict[int, int] = {}
    for spec in specs:
        try:
            pieces = held_pieces(model, spec.name, tuple(spec.shape))
        except Uncovered:
            return []
        for piece in pieces:
            filled[piece.owner] = filled.get(piece.owner, 0) + piece.data.numel()
    return _unsent(model, filled)


def _not_finite(data: Tensor) -> int:
    """Elements that are NaN or infinite; one cheap pass where there are none."""
    if not data.is_floating_point() or bool(data.sum(dtype=torch.float32).isfinite()):
        return 0
    return int((~torch.isfinite(data)).sum())


def _unsent(model: nn.Module, filled: dict[int, int]) -> list[str]:
    """Parameters that were not sent completely."""
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        VocabParallelEmbedding,
    )

    names, seen = [], set()
    for prefix, layer in model.named_modules():
        for name, parameter in layer._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            readable = readable_parameter(layer, name)  # not padded for a kernel
            wanted = (parameter if readable is None else readable).numel()
            if isinstance(layer, VocabParallelEmbedding):
                wanted = layer.shard_indices.num_org_elements * parameter[0].numel()
            wanted = getattr(parameter, "weight_loader_numel", wanted)
            if filled.get(id(parameter), 0) < wanted:
                names.append(f"{prefix}.{name}")
    return names


def held_pieces(model: nn.Module, name: str, shape: tuple[int, ...]) -> list[Piece]:
    """The slices of one Hugging Face tensor that this rank has.

    Args:
        model: vLLM's.
        name: of the tensor.
        shape: of the full tensor.

    Returns:
        None, one or several; a pipeline stage or an expert-parallel rank may have none.

    Raises:
        Uncovered: no rule.
    """
    layer, rest, shard = _find(model, name)
    if layer is None:
        return []
    for kind, rule in _rules():
        if isinstance(layer, kind):
            pieces = list(rule(layer, rest, shard, shape))
            break
    else:
        pieces = [_piece(layer, rest, _parameter(layer, rest), (0,) * len(shape))]
        if shard is not None:
            raise Uncovered(f"part {shard!r} of a {type(layer).__name__}")
    for piece in pieces:
        _check(piece, shape)
    return pieces


def _find(model: nn.Module, name: str) -> tuple[nn.Module | None, str, Any]:
    """The innermost layer that a name leads to, the rest of the name, the shard."""
    from vllm.model_executor.models.utils import PPMissingLayer

    layer, rest, shard = model, name, None
    rest, shard = _mapped(layer, rest, shard)
    while "." in rest:
        head, _, tail = rest.partition(".")
        child = layer._modules.get(head)
        if child is None:
            head, tail, shard = _packed(model, layer, head, tail, shard)
            child = layer._modules.get(head)
        if child is None:
            break
        if isinstance(child, PPMissingLayer):
            return None, "", None
        layer, rest = child, tail
        rest, shard = _mapped(layer, rest, shard)
    return layer, rest, shard


def _mapped(layer: nn.Module, name: str, shard: Any) -> tuple[str, Any]:
    """A name after the table of names that a vLLM module has, if it has one."""
    mapper = getattr(layer, "hf_to_vllm_mapper", None)
    if mapper is None or shard is not None:
        return name, shard
    mapped = list(mapper.apply([(name, torch.empty(0))]))
    if not mapped:
        raise Uncovered(f"{type(layer).__name__} leaves it out")
    if len(mapped) > 1:
        raise Uncovered("it is loaded into several places")
    return mapped[0][0], getattr(mapped[0][1], "shard_id", None)


def _packed(
    model: nn.Module, layer: nn.Module, head: str, tail: str, shard: Any
) -> tuple[str, str, Any]:
    """A part of a fused layer by the older of vLLM's two tables."""
    table = getattr(model, "packed_modules_mapping", None) or {}
    for fused, names in table.items():
        if head in names and fused in layer._modules and len(names) > 1:
            index = names.index(head)
            return fused, tail, "qkv"[index] if fused == "qkv_proj" else index
    return head, tail, shard


def _parameter(layer: nn.Module, name: str) -> Tensor:
    if name not in layer._parameters and name not in layer._buffers:
        raise Uncovered(f"{type(layer).__name__} has no {name!r}")
    tensor = readable_parameter(layer, name)
    if tensor is None:
        raise Uncovered(
            "vLLM has packed it and kept no readable copy; call keep_readable() "
            "before the model is built"
        )
    return tensor.data


def _rules() -> list[tuple[type, Callable[..., Iterator[Piece]]]]:
    """Kind of layer to the rule that cuts it; the first that fits."""
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
    from vllm.model_executor.layers.linear import (
        ColumnParallelLinear,
        MergedColumnParallelLinear,
        QKVParallelLinear,
        RowParallelLinear,
    )
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        VocabParallelEmbedding,
    )

    return [
        (MoERunner, lambda layer, *rest: _experts(layer.routed_experts, *rest)),
        (RoutedExperts, _experts),
        (QKVParallelLinear, _qkv),
        (MergedColumnParallelLinear, _merged_columns),
        (ColumnParallelLinear, _columns),
        (RowParallelLinear, _rows),
        (VocabParallelEmbedding, _vocabulary),
    ]


def _piece(layer: Any, name: str, data: Tensor, offset: tuple[int, ...]) -> Piece:
    return Piece(data, offset, id(layer._parameters.get(name)))


def _at(dim: int, begin: int, dims: int) -> tuple[int, ...]:
    return tuple(begin if d == dim else 0 for d in range(dims))


def _qkv(layer: Any, name: str, shard: Any, shape: tuple[int, ...]) -> Iterator[Piece]:
    from vllm.model_executor.layers.linear import QKVParallelLinear

    _exactly(layer, QKVParallelLinear)
    held = _parameter(layer, name)
    per_head = {"q": layer.head_size, "k": layer.head_size, "v": layer.v_head_size}
    counts = {"q": layer.num_heads, "k": layer.num_kv_heads, "v": layer.num_kv_heads}
    totals = {"q": layer.total_num_heads}
    dims, own, first = len(shape), 0, 0
    for part in "qkv":
        size = counts[part] * per_head[part]
        copies = 1 if part == "q" else layer.num_kv_head_replicas
        begin = layer.tp_rank // copies * size
        if shard in (None, part):
            slice_ = held.narrow(0, own, size)
            # Without a part the folder has one fused tensor, too.
            begin += first if shard is None else 0
            yield _piece(layer, name, slice_, _at(0, begin, dims))
        own += size
        first += totals.get(part, layer.total_num_kv_heads) * per_head[part]


def _merged_columns(
    layer: Any, name: str, shard: Any, shape: tuple[int, ...]
) -> Iterator[Piece]:
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear

    _exactly(layer, MergedColumnParallelLinear)
    held, own, first = _parameter(layer, name), 0, 0
    wanted = range(len(layer.output_sizes)) if shard is None else shard
    wanted = (wanted,) if isinstance(wanted, int) else tuple(wanted)
    for index, total in enumerate(layer.output_sizes):
        size = total // layer.tp_size
        if index in wanted:
            begin = first + layer.tp_rank * size
            slice_ = held.narrow(0, own, size)
            yield _piece(layer, name, slice_, _at(0, begin, len(shape)))
            first += total
        own += size


def _columns(
    layer: Any, name: str, shard: Any, shape: tuple[int, ...]
) -> Iterator[Piece]:
    held = _parameter(layer, name)
    yield _piece(layer, name, held, _at(0, layer.tp_rank * held.shape[0], len(shape)))


def _rows(layer: Any, name: str, shard: Any, shape: tuple[int, ...]) -> Iterator[Piece]:
    held = _parameter(layer, name)
    divided = held.dim() == 2
    begin = layer.tp_rank * held.shape[1] if divided else 0
    yield _piece(layer, name, held, _at(1, begin, len(shape)))


def _vocabulary(
    layer: Any, name: str, shard: Any, shape: tuple[int, ...]
) -> Iterator[Piece]:
    held, indices = _parameter(layer, name), layer.shard_indices
    if indices.num_added_elements:
        raise Uncovered("a vocabulary with added tokens of an adapter")
    rows = indices.num_org_elements  # the padding behind them is nobody's
    if rows:
        begin = indices.org_vocab_start_index
        slice_ = held.narrow(0, 0, rows)
        yield _piece(layer, name, slice_, _at(0, begin, len(shape)))


_HELD_AS_LOADED = ("TRITON", "BATCHED_TRITON", "CPU")
"""Kernels of experts that leave the weights' layout, or whose weights are kept."""


def _experts(
    layer: Any, name: str, shard: Any, shape: tuple[int, ...]
) -> Iterator[Piece]:
    backend = getattr(layer.quant_method, "unquantized_backend", None)
    if getattr(backend, "name", None) not in _HELD_AS_LOADED:
        raise Uncovered(f"experts in the layout of {backend}")
    config = layer.moe_config
    if config.num_experts != config.num_logical_experts:
        raise Uncovered("experts that are there more than once")
    number, _, projection = name.partition(".")
    projection, _, kind = projection.rpartition(".")
    known = number.isdecimal() and int(number) < config.num_experts
    if not known or kind != "weight":
        raise Uncovered(f"experts have no {name!r}")
    local = layer._map_global_expert_id_to_local_expert_id(int(number))
    if local < 0:
        return
    parallel = config.moe_parallel_config
    if projection == layer.ckpt_down_proj_name:
        held = _parameter(layer, "w2_weight")[local]
        size = shape[1] // parallel.tp_size
        held = held[: shape[0], :size]
        yield _piece(layer, "w2_weight", held, (0, parallel.tp_rank * size))
        return
    halves = {layer.ckpt_gate_proj_name: 0, layer.ckpt_up_proj_name: 1}
    if projection not in halves:
        raise Uncovered(f"experts have no {name!r}")
    held = _parameter(layer, "w13_weight")[local]
    size = shape[0] // parallel.tp_size
    half = held.narrow(0, halves[projection] * (held.shape[0] // 2), size)
    half = half[:, : shape[1]]
    yield _piece(layer, "w13_weight", half, (parallel.tp_rank * size, 0))


def _exactly(layer: nn.Module, kind: type) -> None:
    """Refuse a subclass, which may cut otherwise."""
    own = type(layer)
    cuts = ("weight_loader", "weight_loader_v2", "_get_shard_offset_mapping")
    if any(getattr(own, cut, None) is not getattr(kind, cut, None) for cut in cuts):
        raise Uncovered(f"a {own.__name__}, which cuts weights in its own way")


def _check(piece: Piece, shape: tuple[int, ...]) -> None:
    size = tuple(piece.data.shape)
    fits = len(size) == len(shape) and all(
        begin + own <= whole
        for begin, own, whole in zip(piece.offset, size, shape, strict=True)
    )
    if not fits:
        raise Uncovered(
            f"held as {list(size)} at {list(piece.offset)} of a tensor {list(shape)}"
        )


def _as_sent(piece: Piece, wanted: torch.dtype, shape: tuple[int, ...]) -> Piece:
    """The slice in the dtype in which it was sent, where that loses nothing.

    A vector may be held in a narrower one: its digests were taken for that, too.
    """
    held = piece.data
    if held.dtype == wanted or (len(shape) < 2 and wanted == torch.float32):
        return piece
    narrowed = held.to(wanted)
    widening = wanted in (torch.bfloat16, torch.float16) and held.dtype == torch.float32
    if widening and torch.equal(narrowed.to(held.dtype), held):
        return replace(piece, data=narrowed)
    raise Uncovered(
        f"sent in {dtype_name(wanted)} and held in {dtype_name(held.dtype)}: the bits "
        "cannot be compared"
    )
