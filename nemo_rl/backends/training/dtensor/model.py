"""A Hugging Face model divided over ranks: built, filled, run and taken apart again.

Knows one rank's mesh and its weights; no loss, no optimizer, no batch. Weights are kept
in fp32, divided over the data-parallel ranks by FSDP2 (and over the tensor-parallel
ranks by a plan); a layer is gathered in ``policy.precision`` while it runs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.parallel import parallelize_module

from nemo_rl.backends.training.dtensor.plans import plan_for, summed_parameters
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.converters.bridge import some
from nemo_rl.converters.formats.hf import HfWeights
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.imports import require

# A weight divided over both axes is gathered in two steps, which torch advises against
# every time; it happens when weights are exported.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)

DP, TP = "dp", "tp"
"""Axes of the mesh; without tensor parallelism it has the first alone."""


def make_mesh(device: torch.device, world_size: int, tp: int) -> DeviceMesh:
    """The mesh of all ranks, tensor-parallel ranks next to one another."""
    if device.type == "cuda":
        # A mesh made before CUDA is initialised would choose a device of its own.
        torch.cuda.init()
    if tp == 1:
        return init_device_mesh(device.type, (world_size,), mesh_dim_names=(DP,))
    shape = (world_size // tp, tp)
    return init_device_mesh(device.type, shape, mesh_dim_names=(DP, TP))


class ShardedModel:
    """This rank's part of a causal language model.

    Args:
        folder: Hugging Face folder.
        policy: precision and ``dtensor_cfg``.
        device: where layers run.
        mesh: see ``make_mesh``.
        frozen: it is only looked at.

    Attributes:
        module: the model under FSDP2, its parameters named as in the folder.
        summed: parameters whose gradients are summed over tensor-parallel ranks.

    Raises:
        ConfigurationError: transformers does not know the model, there is no
            tensor-parallel plan for it, or its files do not hold its weights.
    """

    def __init__(
        self,
        folder: Path,
        policy: PolicyConfig,
        device: torch.device,
        mesh: DeviceMesh,
        *,
        frozen: bool = False,
    ) -> None:
        section = policy.dtensor_cfg
        self.folder, self.device, self.mesh = folder, device, mesh
        self.dtype = getattr(torch, policy.precision)
        self.module: Any = _empty_model(folder, policy.hf_config_overrides)
        self.module.requires_grad_(requires_grad=not frozen)
        self.vocab_size: int = self.module.config.get_text_config().vocab_size
        self._select: Tensor | None = None
        head = self.module.get_output_embeddings()
        head.register_forward_pre_hook(self._selected_positions)
        if section.activation_checkpointing:
            _recompute_layers(self.module)
        self.summed: set[str] = set()
        if TP in (mesh.mesh_dim_names or ()):
            plan = plan_for(self.module, section.custom_parallel_plan)
            # The values are filled in below: None sends nothing.
            parallelize_module(self.module, mesh[TP], plan, src_data_rank=None)
            self.summed = summed_parameters(self.module, plan)
        self._shard(section.cpu_offload and device.type == "cuda")
        with HfWeights(folder) as weights:
            self._check_names(weights.shapes, str(folder))
            for name, tensor in named_weights(self.module).items():
                _copy(weights.tensor(name), tensor)
                weights.release(name)

    def _shard(self, cpu_offload: bool) -> None:
        options: dict[str, Any] = {
            "mesh": self.mesh[DP],
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=self.dtype, reduce_dtype=torch.float32
            ),
        }
        if cpu_offload:
            options["offload_policy"] = CPUOffloadPolicy()
        for layer in _layers(self.module):
            fully_shard(layer, **options)
        fully_shard(self.module, **options)
        # Loss shares are divided by the global count already: gradients are summed.
        for unit in self._units():
            unit.set_force_sum_reduction_for_comms(True)
            unit.set_gradient_divide_factor(1.0)

    def _units(self) -> list[Any]:
        return [*_layers(self.module), self.module]

    @property
    def tp_group(self) -> Any:
        """The tensor-parallel process group; None without one."""
        names = self.mesh.mesh_dim_names or ()
        return self.mesh[TP].get_group() if TP in names else None

    def logits(self, ids: Tensor, select: Tensor) -> Tensor:
        """Logits [T, V] of the T selected positions, in row-major order.

        Args:
            ids: [b, S] int64 right-padded; causality alone keeps padding out.
            select: [b, S] bool; prompts and padding cost no vocabulary projection.
        """
        self._select = select
        try:
            return self.module(input_ids=ids, use_cache=False).logits[0]
        finally:
            self._select = None

    def _selected_positions(self, head: nn.Module, args: tuple[Any, ...]) -> Any:
        del head
        return None if self._select is None else (args[0][self._select][None],)

    def reshard(self) -> None:
        """Let go of gathered weights: the next pass reads what is written now."""
        for unit in self._units():
            unit.reshard()

    @contextmanager
    def gathered(self) -> Iterator[Any]:
        """The model with all its weights gathered, for many forward passes.

        No pass inside waits for another rank's; tensor-parallel ranks must run the
        same ones. To enter is a collective over the data-parallel ranks.
        """
        self.module.eval()
        self.module.set_reshard_after_forward(False)
        for unit in self._units():
            unit.unshard()
        try:
            yield self.module
        finally:
            self.module.set_reshard_after_forward(True)
            # As FSDP has it: the root's weights are wanted again by the backward pass.
            self.module.set_reshard_after_forward(False, recurse=False)
            self.reshard()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face name to full shape of every weight, in the model's order."""
        weights = named_weights(self.module).items()
        return {name: tuple(weight.shape) for name, weight in weights}

    def fill(self, weights: Mapping[str, Tensor]) -> None:
        """Replace all weights by full tensors under their Hugging Face names.

        Raises:
            ConfigurationError: missing, surplus or misshapen tensors.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        self._check_names(shapes, "the caller")
        self.reshard()
        for name, tensor in named_weights(self.module).items():
            _copy(weights[name], tensor)

    def _check_names(self, found: Mapping[str, tuple[int, ...]], where: str) -> None:
        own = self.shapes()
        problems = []
        if missing := set(own) - set(found):
            problems.append(f"lack {some(missing)}")
        # The second name of a tied weight, and what transformers once saved.
        known = {*own, *self.module.state_dict()}
        surplus = {n for n in set(found) - known if not n.endswith(".inv_freq")}
        if surplus:
            problems.append(f"have {some(surplus)}, which the model has not")
        for name in own:
            if name in found and found[name] != own[name]:
                problems.append(
                    f"have {name} of shape {list(found[name])} where config.json "
                    f"implies {list(own[name])}"
                )
        if problems:
            raise ConfigurationError(
                f"the weights of {where} {'; '.join(problems[:5])}. They belong to "
                "another model, or transformers stores this one otherwise than it runs "
                "it: train it with Megatron (policy.megatron_cfg.enabled)."
            )

    def local_weights(self) -> dict[str, Tensor]:
        """This rank's part of every weight; writing to it changes the model."""
        return {name: local(w) for name, w in named_weights(self.module).items()}

    @torch.no_grad()
    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (Hugging Face name, full tensor in ``policy.precision``).

        A collective: all ranks exhaust the iterator, and all receive the tensors.
        """
        for name, weight in named_weights(self.module).items():
            yield name, gather(weight.detach(), self.device).to(self.dtype)


def _empty_model(folder: Path, overrides: dict[str, Any]) -> Any:
    """The model with weights that nobody has written yet, and so in no memory."""
    transformers = require("transformers")
    from transformers.initialization import no_init_weights

    try:
        config = transformers.AutoConfig.from_pretrained(
            str(folder), trust_remote_code=False, **overrides
        )
        options: dict[str, Any] = {"dtype": torch.float32, "trust_remote_code": False}
        if getattr(config.get_text_config(), "attn_logit_softcapping", None):
            # Fused kernels leave the bound of the scores out without a word.
            options["attn_implementation"] = "eager"
        # The allocator gives large tensors no pages before they are written.
        with no_init_weights():
            model = transformers.AutoModelForCausalLM.from_config(config, **options)
    except (ValueError, KeyError, OSError) as error:
        raise ConfigurationError(
            f"transformers cannot build the model of {folder}: {error}"
        ) from None
    model.tie_weights()
    return model


def _recompute_layers(model: Any) -> None:
    try:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigurationError(
            f"policy.dtensor_cfg.activation_checkpointing: {error} Set it to false."
        ) from None


def _layers(model: Any) -> list[Any]:
    """The decoder layers: the longest list right below the base model."""
    lists = [m for m in model.base_model.children() if isinstance(m, nn.ModuleList)]
    return list(max(lists, key=len, default=[]))


def named_weights(model: Any) -> dict[str, Tensor]:
    """Name to tensor of all that a checkpoint holds; a tied weight stands once."""
    found: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        found.setdefault(id(tensor), name)
    return {name: state[name] for name in found.values()}


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather(tensor: Tensor, device: torch.device) -> Tensor:
    """The whole of a divided tensor, on the device; a collective over its mesh."""
    tensor = tensor.to(device)
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def _copy(full: Tensor, into: Tensor) -> None:
    local(into).copy_(part_of(full, into))


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """What this rank keeps of a full tensor, divided as ``like`` is."""
    if not isinstance(like, DTensor):
        return full
    shape, start = compute_local_shape_and_global_offset(
        like.shape, like.device_mesh, like.placements
    )
    pairs = zip(start, shape, strict=True)
    return full[tuple(slice(first, first + size) for first, size in pairs)]
