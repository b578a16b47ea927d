"""Let megatron-core run on a machine without CUDA, by patching nothing else.

Inside ``megatron.core`` modules, and only there, the global name ``torch`` becomes a
proxy: CUDA runtime calls turn into CPU no-ops, and tensor factories asked for a
``cuda`` device build on the CPU. Three patches are process-wide because megatron
reaches them through tensors: ``Tensor.cuda`` and ``Module.cuda`` become identities
(they raise otherwise) and ``Tensor.type()`` returns a name equal to its CUDA twin.
megatron-core is pinned exactly; every patch has its own test. On a machine with CUDA
``install`` does nothing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import sys
import time
import types
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

_PACKAGE = "megatron.core"
_CPU = torch.device("cpu")
_MEMORY_BYTES = 8 << 30
_FACTORY_NAMES = """
    arange as_tensor empty empty_like empty_strided eye full full_like linspace
    logspace ones ones_like rand rand_like randint randn randn_like randperm
    scalar_tensor tensor tril_indices triu_indices zeros zeros_like
"""
_FACTORIES = tuple(_FACTORY_NAMES.split())


class CpuEvent:
    """Stands for ``torch.cuda.Event``: records wall time, never waits."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self._time = time.perf_counter()

    def record(self, *_: Any) -> None:
        self._time = time.perf_counter()

    def elapsed_time(self, other: CpuEvent) -> float:
        return (other._time - self._time) * 1e3

    def query(self) -> bool:
        return True

    def wait(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...


class CpuStream:
    """Stands for ``torch.cuda.Stream``: work is already in order on the CPU."""

    device = _CPU
    cuda_stream = 0
    priority = 0

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, *_: Any) -> None: ...

    def wait_event(self, *_: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: CpuEvent | None = None) -> CpuEvent:
        return event or CpuEvent()

    def __enter__(self) -> CpuStream:
        return self

    def __exit__(self, *_: Any) -> None: ...


def _nothing(*_: Any, **__: Any) -> None:
    return None


@contextlib.contextmanager
def _null_context(*_: Any, **__: Any):
    yield


def _cpu_rng_state(*_: Any, **__: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_cpu_rng_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(state)


def _cuda_replacements() -> dict[str, Any]:
    """Every ``torch.cuda`` name that megatron-core calls, with its CPU meaning."""
    stream = CpuStream()
    properties = types.SimpleNamespace(
        name="cpu",
        major=0,
        minor=0,
        multi_processor_count=1,
        total_memory=_MEMORY_BYTES,
    )
    no_ops = (
        "synchronize empty_cache set_device ipc_collect reset_peak_memory_stats "
        "set_stream"
    )
    counters = (
        "memory_allocated max_memory_allocated memory_reserved max_memory_reserved"
    )
    nvtx = types.SimpleNamespace(
        mark=_nothing,
        range=_null_context,
        range_push=_nothing,
        range_pop=_nothing,
        range_start=_nothing,
        range_end=_nothing,
    )
    return {
        **dict.fromkeys(no_ops.split(), _nothing),
        **dict.fromkeys(counters.split(), lambda *_: 0),
        "Event": CpuEvent,
        "ExternalStream": CpuStream,
        "Stream": CpuStream,
        "current_device": lambda: _CPU,
        "current_stream": lambda *_, **__: stream,
        "default_stream": lambda *_, **__: stream,
        "device": _null_context,
        "device_count": lambda: 1,
        "get_device_capability": lambda *_: (0, 0),
        "get_device_properties": lambda *_: properties,
        "get_rng_state": _cpu_rng_state,
        "is_current_stream_capturing": lambda: False,
        "manual_seed": torch.manual_seed,
        "manual_seed_all": torch.manual_seed,
        "mem_get_info": lambda *_: (_MEMORY_BYTES, _MEMORY_BYTES),
        "memory_stats": lambda *_, **__: defaultdict(int),
        "nvtx": nvtx,
        "random": types.SimpleNamespace(
            get_rng_state=_cpu_rng_state, set_rng_state=_set_cpu_rng_state
        ),
        "set_rng_state": _set_cpu_rng_state,
        "stream": _null_context,
    }


def _means_cuda(device: Any) -> bool:
    if isinstance(device, str):
        return device.startswith("cuda")
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, int) and not isinstance(device, bool)


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def build(*args: Any, **kwargs: Any) -> Any:
        if _means_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return build


class _Overlay(types.ModuleType):
    """A module that answers with replacements first and the real module after."""

    def __init__(self, real: types.ModuleType, replacements: dict[str, Any]) -> None:
        super().__init__(real.__name__)
        self.__dict__["_real"] = real
        self.__dict__.update(replacements)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_real"], name, value)


class _TensorTypeName(str):
    """``torch.FloatTensor`` that also equals ``torch.cuda.FloatTensor``."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        cuda_name = self.replace("torch.", "torch.cuda.", 1)
        return str.__eq__(self, other) or str.__eq__(cuda_name, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def _patch_rng(module: Any) -> None:
    module._get_cuda_rng_state = _cpu_rng_state
    module._set_cuda_rng_state = _set_cpu_rng_state


def _patch_moe_utils(module: Any) -> None:
    # 0.16.1 names te_general_gemm without importing it when TE is absent.
    module.__dict__.setdefault("te_general_gemm", None)
    module.maybe_move_tensor_to_cpu = _split_sizes_as_numpy


def _patch_token_dispatcher(module: Any) -> None:
    module.maybe_move_tensor_to_cpu = _split_sizes_as_numpy


def _split_sizes_as_numpy(
    tensor: Any, as_numpy: bool = False, record_stream: bool = False
) -> Any:
    # Tensors that already live on the CPU must become numpy too: all_to_all wants ints.
    del record_stream
    return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor


def _patch_optimizer(module: Any) -> None:
    if not getattr(module, "USING_PYTORCH_OPTIMIZER", False):
        return
    from nemo_rl.backends.platform.cpu_adam import CpuFusedAdam

    module.Adam = CpuFusedAdam
    module.USING_PYTORCH_OPTIMIZER = False


def _patch_distributed_optimizer(module: Any) -> None:
    if module.HAVE_APEX_OR_TE:
        return
    from nemo_rl.backends.platform.cpu_adam import CpuFusedAdam

    module.Adam = CpuFusedAdam
    module.HAVE_APEX_OR_TE = module.USING_APEX_OPTIMIZER = True


def _patch_latent_attention(module: Any) -> None:
    # 0.16.1 believes in Transformer Engine where its classes are None.
    module.HAVE_TE = isinstance(module.TELinear, type)


def _patch_linear(module: Any) -> None:
    from nemo_rl.backends.platform import cpu_linear

    module.linear_with_grad_accumulation_and_async_allreduce = cpu_linear.linear


def _patch_norm(module: types.ModuleType) -> None:
    from nemo_rl.backends.platform.cpu_norm import CpuRMSNorm

    original = module.WrappedTorchNorm.__new__

    def build(
        cls: type, config: Any, hidden_size: int, eps: float = 1e-5, **kwargs: Any
    ):
        if config.normalization == "RMSNorm":
            return CpuRMSNorm(hidden_size, eps=eps)
        return original(cls, config, hidden_size, eps, **kwargs)

    module.WrappedTorchNorm.__new__ = build


def _patch_rotary(module: Any) -> None:
    from nemo_rl.backends.platform import cpu_rotary

    original = module._apply_rotary_pos_emb_bshd

    def rotate(t: Any, freqs: Any, *args: Any, **kwargs: Any) -> Any:
        unusual = any(args) or any(
            value for name, value in kwargs.items() if name != "mscale"
        )
        scaled = kwargs.get("mscale", 1.0) != 1.0
        if unusual or scaled or freqs.shape[-1] != t.shape[-1]:
            return original(t, freqs, *args, **kwargs)
        return cpu_rotary.rotate(t, freqs)

    module._apply_rotary_pos_emb_bshd = rotate


PATCHES: dict[str, Callable[[types.ModuleType], None]] = {
    "megatron.core.models.common.embeddings.rope_utils": _patch_rotary,
    "megatron.core.tensor_parallel.layers": _patch_linear,
    "megatron.core.tensor_parallel.random": _patch_rng,
    "megatron.core.transformer.multi_latent_attention": _patch_latent_attention,
    "megatron.core.transformer.torch_norm": _patch_norm,
    "megatron.core.transformer.moe.moe_utils": _patch_moe_utils,
    "megatron.core.transformer.moe.token_dispatcher": _patch_token_dispatcher,
    "megatron.core.optimizer": _patch_optimizer,
    "megatron.core.optimizer.distrib_optimizer": _patch_distributed_optimizer,
}
"""Patches that a single megatron module needs, by its name."""


def _covers(name: str) -> bool:
    return name == _PACKAGE or name.startswith(_PACKAGE + ".")


def _patch(module: types.ModuleType, torch_proxy: types.ModuleType) -> None:
    if module.__dict__.get("torch") is torch:
        module.__dict__["torch"] = torch_proxy
    for name in ("range_push", "range_pop"):  # from torch.cuda.nvtx import range_push
        if getattr(module.__dict__.get(name), "__module__", "") == "torch.cuda.nvtx":
            module.__dict__[name] = _nothing
    PATCHES.get(module.__name__, _nothing)(module)


class _PatchingFinder(importlib.abc.MetaPathFinder):
    """Patch each megatron module right after it is executed, lazy ones included."""

    def __init__(self, torch_proxy: types.ModuleType) -> None:
        self._proxy = torch_proxy

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if not _covers(fullname):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_patch(module: types.ModuleType) -> None:
            with warnings.catch_warnings():
                # They advise on fused GPU libraries that a CPU has no use for.
                warnings.simplefilter("ignore")
                execute(module)
            _patch(module, self._proxy)

        spec.loader.exec_module = execute_and_patch
        return spec


def install() -> None:
    """Install the shim in this process; idempotent, and a no-op where CUDA works."""
    if torch.cuda.is_available() or any(
        isinstance(finder, _PatchingFinder) for finder in sys.meta_path
    ):
        return
    cuda = _Overlay(torch.cuda, _cuda_replacements())
    factories = {name: _on_cpu(getattr(torch, name)) for name in _FACTORIES}
    proxy = _Overlay(torch, {"cuda": cuda, **factories})

    tensor_type = torch.Tensor.type

    def type_name(
        self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if dtype is None and not args and not kwargs:
            return _TensorTypeName(tensor_type(self))
        return tensor_type(self, dtype, *args, **kwargs)

    torch.Tensor.type = type_name
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.nn.Module.cuda = lambda self, *_, **__: self
    sys.meta_path.insert(0, _PatchingFinder(proxy))
    for name, module in sorted(sys.modules.items()):
        if module is not None and _covers(name):
            _patch(module, proxy)
