"""Every patch that lets megatron-core run without CUDA, one test each.

The shim is installed by the import of tests.functional.ranks. Nothing here says how
the same modules behave on a GPU, where the shim does nothing.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
import types

import pytest
import torch

import tests.functional.ranks  # noqa: F401 - installs the shim
from nemo_rl.backends.platform import cpu_linear, cpu_rotary, cpu_shim
from nemo_rl.backends.platform.cpu_adam import CpuFusedAdam
from nemo_rl.backends.platform.cpu_norm import CpuRMSNorm

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="there is a GPU: the shim does nothing"
)


@pytest.fixture(scope="module")
def seen():
    """The name ``torch`` as megatron's modules see it."""
    from megatron.core.tensor_parallel import mappings

    return mappings.torch


def module(name):
    return importlib.import_module(name)


# ---- PATCHES, entry by entry -------------------------------------------------------


def test_every_patch_has_a_test_here():
    tested = {
        "megatron.core.models.common.embeddings.rope_utils": test_patch_rotary,
        "megatron.core.tensor_parallel.layers": test_patch_linear,
        "megatron.core.tensor_parallel.random": test_patch_rng_state,
        "megatron.core.transformer.multi_latent_attention": (
            test_patch_latent_attention
        ),
        "megatron.core.transformer.torch_norm": test_patch_norm,
        "megatron.core.transformer.moe.moe_utils": test_patch_moe_utils,
        "megatron.core.transformer.moe.token_dispatcher": test_patch_token_dispatcher,
        "megatron.core.optimizer": test_patch_optimizer,
        "megatron.core.optimizer.distrib_optimizer": test_patch_distributed_optimizer,
    }
    assert tested.keys() == cpu_shim.PATCHES.keys()


def test_patch_rotary():
    rope = module("megatron.core.models.common.embeddings.rope_utils")
    patched = rope._apply_rotary_pos_emb_bshd
    generator = torch.Generator().manual_seed(0)
    t = torch.randn(3, 1, 2, 8, generator=generator)
    freqs = torch.rand(3, 1, 1, 4, generator=generator).repeat(1, 1, 1, 2)
    turned = cpu_rotary.rotate(t, freqs)
    assert torch.equal(patched(t, freqs), turned)
    # Every other rotation is Megatron's own: scaled, of a part, of neighbours.
    torch.testing.assert_close(patched(t, freqs, mscale=2.0), 2 * turned)
    wide = torch.cat([t, t], dim=-1)
    assert torch.equal(patched(wide, freqs)[..., 8:], t)
    torch.testing.assert_close(patched(wide, freqs)[..., :8], turned)
    halves = torch.cat([t[..., 0::2], t[..., 1::2]], dim=-1)
    latent = patched(t, freqs, multi_latent_attention=True)
    torch.testing.assert_close(latent, cpu_rotary.rotate(halves, freqs))


def test_patch_latent_attention():
    latent = module("megatron.core.transformer.multi_latent_attention")
    assert latent.HAVE_TE is False


def test_patch_linear():
    layers = module("megatron.core.tensor_parallel.layers")
    patched = layers.linear_with_grad_accumulation_and_async_allreduce
    assert patched is cpu_linear.linear


def test_patch_norm():
    torch_norm = module("megatron.core.transformer.torch_norm")

    def build(normalization):
        config = types.SimpleNamespace(
            normalization=normalization,
            layernorm_zero_centered_gamma=False,
            persist_layer_norm=False,
            sequence_parallel=False,
            memory_efficient_layer_norm=False,
        )
        return torch_norm.WrappedTorchNorm(config, 8, eps=0.25)

    norm = build("RMSNorm")
    assert isinstance(norm, CpuRMSNorm)
    assert norm.weight.shape == (8,)
    assert norm.eps == 0.25
    assert isinstance(build("LayerNorm"), torch.nn.LayerNorm)


def test_patch_rng_state():
    random = module("megatron.core.tensor_parallel.random")
    state = torch.get_rng_state()
    assert torch.equal(random._get_cuda_rng_state(), state)
    assert torch.equal(random._get_cuda_rng_state("cuda", True), state)
    first = torch.rand(3)
    random._set_cuda_rng_state(state, -1)
    assert torch.equal(torch.rand(3), first)


def test_patch_rng_tracker_forks_the_cpu_generator():
    random = module("megatron.core.tensor_parallel.random")
    tracker = random.CudaRNGStatesTracker()
    outside = torch.get_rng_state()
    tracker.add("model", 7)
    assert torch.equal(torch.get_rng_state(), outside)
    with tracker.fork("model"):
        first = torch.rand(4)
    with tracker.fork("model"):
        second = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), outside)
    generator = torch.Generator().manual_seed(7)
    want = torch.rand(4, generator=generator)
    assert torch.equal(first, want)
    assert not torch.equal(second, want)


def test_patch_moe_utils():
    moe = module("megatron.core.transformer.moe.moe_utils")
    assert moe.te_general_gemm is None
    sizes = torch.tensor([2, 3])
    as_numpy = moe.maybe_move_tensor_to_cpu(sizes, as_numpy=True, record_stream=True)
    assert as_numpy.tolist() == [2, 3]
    assert not torch.is_tensor(as_numpy)
    assert moe.maybe_move_tensor_to_cpu(sizes) is sizes
    assert moe.maybe_move_tensor_to_cpu(None, as_numpy=True) is None


def test_patch_moe_utils_router_runs_without_transformer_engine():
    moe = module("megatron.core.transformer.moe.moe_utils")
    inputs, weight = torch.randn(4, 6), torch.randn(3, 6)
    logits = moe.RouterGatingLinearFunction.apply(inputs, weight, None, torch.float32)
    torch.testing.assert_close(logits, inputs @ weight.T)


def test_patch_token_dispatcher():
    dispatcher = module("megatron.core.transformer.moe.token_dispatcher")
    sizes = dispatcher.maybe_move_tensor_to_cpu(torch.tensor([4]), as_numpy=True)
    assert not torch.is_tensor(sizes)


def test_patch_optimizer():
    optimizer = module("megatron.core.optimizer")
    assert optimizer.Adam is CpuFusedAdam
    assert optimizer.USING_PYTORCH_OPTIMIZER is False


def test_patch_distributed_optimizer():
    distributed = module("megatron.core.optimizer.distrib_optimizer")
    assert distributed.Adam is CpuFusedAdam
    assert distributed.HAVE_APEX_OR_TE is True
    assert distributed.USING_APEX_OPTIMIZER is True


def test_patches_leave_real_fused_optimizers_alone():
    from types import SimpleNamespace

    with_te = SimpleNamespace(USING_PYTORCH_OPTIMIZER=False, HAVE_APEX_OR_TE=True)
    for name in (
        "megatron.core.optimizer",
        "megatron.core.optimizer.distrib_optimizer",
    ):
        cpu_shim.PATCHES[name](with_te)
    assert not hasattr(with_te, "Adam")


# ---- the torch that megatron sees --------------------------------------------------

ARGUMENTS = {
    "arange": (3,),
    "as_tensor": ([1.0],),
    "empty": (2,),
    "empty_like": (torch.ones(2),),
    "empty_strided": ((2,), (1,)),
    "eye": (2,),
    "full": ((2,), 3.0),
    "full_like": (torch.ones(2), 3.0),
    "linspace": (0, 1, 3),
    "logspace": (0, 1, 3),
    "ones": (2,),
    "ones_like": (torch.ones(2),),
    "rand": (2,),
    "rand_like": (torch.ones(2),),
    "randint": (0, 3, (2,)),
    "randn": (2,),
    "randn_like": (torch.ones(2),),
    "randperm": (3,),
    "scalar_tensor": (1.0,),
    "tensor": ([1.0],),
    "tril_indices": (2, 2),
    "triu_indices": (2, 2),
    "zeros": (2,),
    "zeros_like": (torch.ones(2),),
}


@pytest.mark.parametrize("name", cpu_shim._FACTORIES)
def test_factory_builds_on_the_cpu(seen, name):
    for device in ("cuda", "cuda:0", torch.device("cuda"), 0):
        assert getattr(seen, name)(*ARGUMENTS[name], device=device).device.type == "cpu"
    # Outside megatron the same call still fails.
    with pytest.raises((RuntimeError, AssertionError)):
        getattr(torch, name)(*ARGUMENTS[name], device="cuda")


def test_factory_keeps_other_devices_and_drops_pinning(seen):
    assert seen.zeros(2, device="meta").device.type == "meta"
    assert seen.zeros(2, device=torch.device("cpu")).device.type == "cpu"
    assert not seen.empty(2, pin_memory=True).is_pinned()
    assert seen.full((2,), 5, dtype=torch.int8, device="cuda").dtype == torch.int8


def test_cuda_calls_mean_the_cpu(seen):
    cuda = seen.cuda
    assert cuda.current_device() == torch.device("cpu")
    assert cuda.device_count() == 1
    assert cuda.get_device_capability() == (0, 0)
    assert cuda.get_device_properties(0).multi_processor_count == 1
    assert cuda.is_current_stream_capturing() is False
    assert cuda.memory_stats()["any.counter"] == 0
    free, total = cuda.mem_get_info()
    assert 0 < free <= total
    for name in ("synchronize", "empty_cache", "ipc_collect", "set_device"):
        assert getattr(cuda, name)() is None
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved"):
        assert getattr(cuda, name)() == 0
    with cuda.device(0), cuda.stream(cuda.Stream()), cuda.nvtx.range("x"):
        assert cuda.nvtx.range_push("x") is None
        assert cuda.nvtx.range_pop() is None


def test_cuda_seeds_and_states_are_those_of_the_cpu(seen):
    seen.cuda.manual_seed(5)
    state = seen.cuda.get_rng_state()
    first = torch.rand(2)
    seen.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(2), first)
    seen.cuda.manual_seed_all(5)
    assert torch.equal(torch.rand(2), first)
    seen.cuda.random.set_rng_state(seen.cuda.random.get_rng_state())


def test_cuda_events_and_streams_never_wait(seen):
    start, end = seen.cuda.Event(enable_timing=True), seen.cuda.Event()
    end.record()
    assert start.elapsed_time(end) >= 0
    assert end.query() is True
    stream = seen.cuda.current_stream()
    stream.wait_stream(seen.cuda.default_stream())
    stream.wait_event(end)
    stream.synchronize()
    assert stream.record_event(end) is end
    assert stream.record_event().query() is True
    with stream as entered:
        assert entered is stream


def test_cuda_is_still_reported_as_absent(seen):
    assert seen.cuda.is_available() is False


def test_everything_else_is_the_real_torch(seen):
    assert seen is not torch
    assert seen.Tensor is torch.Tensor
    assert seen.nn is torch.nn
    assert seen.matmul is torch.matmul
    assert isinstance(torch.ones(1), seen.Tensor)
    seen.marker_of_a_test = 1
    try:
        assert torch.marker_of_a_test == 1
    finally:
        del torch.marker_of_a_test


def test_range_push_of_other_modules_does_nothing():
    from types import ModuleType

    from torch.cuda.nvtx import range_pop, range_push

    other = ModuleType("megatron.core.made_up")
    other.range_push, other.range_pop = range_push, range_pop
    cpu_shim._patch(other, torch)
    assert other.range_push("x") is None
    assert other.range_pop() is None


# ---- the three patches that reach every tensor -------------------------------------


def test_tensor_cuda_and_module_cuda_are_identities():
    tensor, layer = torch.ones(2), torch.nn.Linear(2, 2)
    assert tensor.cuda() is tensor
    assert tensor.cuda(0, non_blocking=True) is tensor
    assert layer.cuda() is layer
    assert layer.cuda(torch.device("cuda")) is layer


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "FloatTensor"), (torch.bfloat16, "BFloat16Tensor")],
)
def test_tensor_type_equals_its_cuda_twin(dtype, name):
    kind = torch.ones(1, dtype=dtype).type()
    assert kind == f"torch.{name}"
    assert kind == f"torch.cuda.{name}"
    assert (kind != f"torch.cuda.{name}") is False
    assert kind != "torch.cuda.HalfTensor"
    assert kind in ("torch.cuda.HalfTensor", f"torch.cuda.{name}")
    assert {kind: 1}[f"torch.{name}"] == 1
    assert isinstance(kind, str)


def test_tensor_type_still_converts():
    ones = torch.ones(2)
    assert ones.type(torch.int64).dtype == torch.int64
    assert ones.type("torch.DoubleTensor").dtype == torch.float64
    assert ones.type(dtype=torch.float16).dtype == torch.float16


# ---- installation ------------------------------------------------------------------


def test_install_is_idempotent():
    kind, cuda, finders = torch.Tensor.type, torch.Tensor.cuda, list(sys.meta_path)
    cpu_shim.install()
    assert torch.Tensor.type is kind
    assert torch.Tensor.cuda is cuda
    assert sys.meta_path == finders
    shims = [f for f in finders if isinstance(f, cpu_shim._PatchingFinder)]
    assert len(shims) == 1


def test_modules_of_other_packages_see_the_real_torch():
    names = [
        name
        for name, found in list(sys.modules.items())
        if isinstance(getattr(found, "__dict__", {}).get("torch"), cpu_shim._Overlay)
    ]
    assert names
    assert all(name.startswith("megatron.core") for name in names)


FRESH = """
    import sys, torch
    from nemo_rl.backends.platform import cpu_shim

    def raises(call):
        try:
            call()
        except (RuntimeError, AssertionError):
            return True
        return False

    before, before_cuda = dict(torch.__dict__), dict(torch.cuda.__dict__)
    assert raises(lambda: torch.ones(1).cuda())
    available = torch.cuda.is_available
    torch.cuda.is_available = lambda: True
    cpu_shim.install()
    assert raises(lambda: torch.ones(1).cuda()), "installed where CUDA works"
    torch.cuda.is_available = available

    cpu_shim.install()
    assert "megatron.core" not in sys.modules
    assert torch.__dict__ == before
    assert torch.cuda.__dict__ == before_cuda
    assert torch.ones(1).cuda().device.type == "cpu"

    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        from megatron.core.tensor_parallel import mappings, random
    assert isinstance(mappings.torch, cpu_shim._Overlay), "lazy imports are patched"
    assert random._get_cuda_rng_state is cpu_shim._cpu_rng_state
    # Torch itself wraps a few other names when megatron makes it load its compiler.
    names = set(cpu_shim._FACTORIES)
    assert not {k for k in names if torch.__dict__[k] is not before[k]}
    names = before_cuda.keys() & cpu_shim._cuda_replacements().keys()
    assert not {k for k in names if torch.cuda.__dict__[k] is not before_cuda[k]}
    assert raises(lambda: torch.zeros(1, device="cuda"))
    print("fresh process is fine")
"""


def test_install_in_a_fresh_process_changes_megatron_alone():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FRESH)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "fresh process is fine" in done.stdout, done.stderr
