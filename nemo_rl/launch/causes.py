"""Patterns of messages -> what probably happened, what to do, whether to try again.

A table and one search. It reads no file and knows neither nodes nor processes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """Why a process failed."""

    name: str
    """Short, for programs."""
    pattern: str
    """Regular expression, searched line by line; capitals do not matter."""
    text: str
    """Likely cause, a sentence without a full stop."""
    cure: str
    """What the user can do."""
    again: bool
    """Whether the next attempt may go better: it would on another node, or by luck."""


MEMORY_CURE = (
    "ask for more memory (sbatch --mem), or lower policy.train_micro_batch_size, "
    "workers per node or what the reward keeps"
)
GPU_CURE = (
    "have the node drained and its GPU reset; the next attempt's checks leave it out "
    "if they see it"
)
CAUSES = (
    Cause(
        "hang",
        r"\bthe run hung: ",
        "nothing got done any more",
        "stacks/ in the attempt's folder has where every thread was",
        True,
    ),
    # What the kernel and the hardware say.
    Cause(
        "oom-killer",
        r"out of memory: killed process|oom[-_]kill|memory cgroup out of memory|"
        r"cgroup out-of-memory handler",
        "the kernel's OOM killer ended it: the node's or the job's memory was used up",
        MEMORY_CURE,
        True,
    ),
    Cause(
        "ray-oom",
        r"node running low on memory|ray\.exceptions\.outofmemoryerror",
        "Ray ended it: the node's memory was nearly used up",
        MEMORY_CURE,
        True,
    ),
    Cause(
        "gpu-lost",
        r"fallen off the bus|xid\b.*: (79|119|120|154)\b|gpu is lost|"
        r"unable to determine the device handle",
        "a GPU stopped answering",
        GPU_CURE,
        True,
    ),
    Cause(
        "gpu-memory-error",
        r"uncorrectable ecc|xid\b.*: (48|63|64|92|94|95)\b|row[- ]remap",
        "a GPU's memory has an uncorrectable error",
        GPU_CURE,
        True,
    ),
    Cause(
        "nvlink",
        r"xid\b.*: 74\b|nvlink.*(error|fatal)",
        "an NVLink failed",
        "have the node drained; `nvidia-smi nvlink -e` counts its errors",
        True,
    ),
    # Memory of the GPU, and faults of a program.
    Cause(
        "cuda-oom",
        r"cuda out of memory|cuda error: out of memory|torch\.outofmemoryerror|"
        r"cublas_status_alloc_failed",
        "the GPU's memory does not suffice",
        "lower policy.train_micro_batch_size, logprob_batch_size or "
        "generation_batch_size, turn on activation_checkpointing, or raise the "
        "parallel sizes",
        False,
    ),
    Cause(
        "host-memory",
        r"\bmemoryerror\b|cannot allocate memory|defaultcpuallocator|std::bad_alloc",
        "the node gave no more memory",
        MEMORY_CURE,
        False,
    ),
    Cause(
        "collective-timeout",
        r"watchdog caught collective operation timeout|nccl.*timed? ?out|"
        r"timed out waiting \d+ ?ms for (recv|send)",
        "a collective timed out: some rank did not come",
        "look for an earlier error of another rank in the logs; if there is none, for "
        "a slow node or a broken link (nemo-rl doctor, docs/preflight.md)",
        True,
    ),
    Cause(
        "nccl",
        r"nccl(system|internal|remote)?error|nccl error|unhandled (system|cuda) error.*"
        r"nccl|ibv_\w+ failed|net/ib",
        "NCCL failed: a link or adapter, or a peer that went away",
        "NCCL_DEBUG=WARN in the site file tells which; the checks measure every link",
        True,
    ),
    Cause(
        "cuda",
        r"illegal memory access|device-side assert|xid\b.*: (13|31|43|45)\b|"
        r"cuda error|cublas_status|cudnn_status",
        "a CUDA kernel failed",
        "run again with CUDA_LAUNCH_BLOCKING=1; if only one node does it, have its "
        "GPU checked",
        True,
    ),
    # Disks.
    Cause(
        "disk-full",
        r"no space left on device|errno 28\b",
        "a disk is full",
        "free space where the message says: the run folder, NEMO_RL_TMPDIR or /dev/shm",
        False,
    ),
    Cause(
        "quota",
        r"disk quota exceeded|errno 122\b",
        "your quota on the file system is used up",
        "remove files, or put run folder and checkpoints elsewhere",
        False,
    ),
    Cause(
        "file-system",
        r"input/output error|stale (nfs )?file handle|errno (5|116)\b|"
        r"transport endpoint is not connected",
        "a file system failed",
        "look at the mount on that node",
        True,
    ),
    Cause(
        "open-files",
        r"too many open files|errno 24\b",
        "too many files are open",
        "raise `ulimit -n` of the nodes (LimitNOFILE of slurmd)",
        False,
    ),
    Cause(
        "shared-memory",
        r"\bbus error\b|sigbus",
        "a page of memory could not be had: /dev/shm is full, or a mapped file changed",
        "look at `df /dev/shm` on the node, and who fills it",
        True,
    ),
    # Programs.
    Cause(
        "import",
        r"no module named|\bimporterror|modulenotfounderror|undefined symbol|"
        r"cannot open shared object file|glibc\w* not found",
        "a library is missing or does not fit",
        "the same environment or image must be on every node: NEMO_RL_PYTHON or the "
        "container of the site file",
        False,
    ),
    Cause(
        "permission",
        r"permission denied|operation not permitted|errno 13\b",
        "a file or folder may not be read or written",
        "look at its owner and mode, and at the container's mounts",
        False,
    ),
    Cause(
        "missing-file",
        r"filenotfounderror|no such file or directory|errno 2\b",
        "a file is missing",
        "is the path right on every node, and mounted in the container?",
        False,
    ),
    Cause(
        "not-finite",
        r"(loss|gradients?|grad_norm|logits|reward).{0,40}(not finite|is nan|\bnan\b)",
        "training diverged",
        "lower the learning rate, or clip gradients more",
        False,
    ),
    Cause(
        "crash",
        r"segmentation fault|sigsegv|segfault at|fatal python error|sigabrt|"
        r"illegal instruction|terminate called",
        "native code crashed",
        "the stack is in the node's logs; if only one node does it, suspect its "
        "memory, else a library",
        True,
    ),
    # SLURM.
    Cause(
        "preempted",
        r"due to preemption",
        "SLURM gave the nodes to a job of higher priority",
        "nothing: the job goes on when it is its turn",
        True,
    ),
    Cause(
        "time-limit",
        r"due to time limit",
        "the time limit was reached before the run had saved and ended",
        "an earlier warning (sbatch --signal=B:USR2@900), more time, or shorter steps",
        True,
    ),
    Cause(
        "node-failure",
        r"due to node failure|node failure on",
        "SLURM lost a node",
        "`scontrol show node` tells its reason; the job goes on without it",
        True,
    ),
    # Consequences: only where nothing above is found.
    Cause(
        "ray-lost",
        r"gcs.*(unavailable|unreachable|failed to connect)|failed to connect to gcs|"
        r"raylet (died|is dead)|node (has died|was terminated unexpectedly)",
        "Ray's control process or a node went away",
        "look for the first error of the head node's and that node's logs",
        True,
    ),
    Cause(
        "peer-lost",
        r"connection (reset|closed|refused)|closed by peer|broken pipe|socket timeout",
        "a peer went away: this is a consequence",
        "look for the first error of the other nodes' logs",
        True,
    ),
)
"""The first that fits a text counts: precise ones first, consequences last."""
CONSEQUENCES = frozenset({"ray-lost", "peer-lost"})
"""Names of those that every log has here and there."""
FROM_OUTSIDE = frozenset({"oom-killer", "ray-oom"})
"""Names of those that kill a process without its doing."""
_COMPILED = tuple((re.compile(cause.pattern, re.IGNORECASE), cause) for cause in CAUSES)
_ADVICE = re.compile(r"^(what to do:|the run continues)", re.IGNORECASE)


def diagnose(
    *texts: str | Iterable[str], names: Collection[str] | None = None
) -> tuple[Cause, str] | None:
    """Return the likely cause and the line that tells it, None if none is known.

    Args:
        texts: from the strongest evidence to the weakest; a text, or its lines. What
            we advise ourselves is no evidence.
        names: of the causes that come into question; all when None.
    """
    for text in texts:
        lines = text.splitlines() if isinstance(text, str) else list(text)
        lines = [line for line in lines if not _ADVICE.match(line.strip())]
        for pattern, cause in _COMPILED:
            if names is not None and cause.name not in names:
                continue
            for line in lines:
                if pattern.search(line):
                    return cause, line.strip()
    return None
