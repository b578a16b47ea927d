"""Tests of nemo_rl.launch.causes: messages as programs print them."""

from __future__ import annotations

import re

import pytest

from nemo_rl.launch.causes import (
    CAUSES,
    CONSEQUENCES,
    FROM_OUTSIDE,
    diagnose,
)

MESSAGES = {
    "the run hung: It waits for PolicyWorker rank 1 on n1 (process 9).": "hang",
    "Out of memory: Killed process 4711 (ray::WorkerShel) total-vm:1kB": "oom-killer",
    "slurmstepd: error: Detected 1 oom_kill event in StepId=5.0.": "oom-killer",
    "memory control group: oom_kill 2": "oom-killer",
    "Task was killed due to the node running low on memory": "ray-oom",
    "NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.": "gpu-lost",
    "NVRM: Xid (PCI:0000:3b:00): 94, pid=1, Contained ECC": "gpu-memory-error",
    "RuntimeError: CUDA error: uncorrectable ECC error encountered": "gpu-memory-error",
    "NVRM: Xid (PCI:0000:3b:00): 74, pid=1, NVLink: fatal error": "nvlink",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate": "cuda-oom",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator": (
        "host-memory"
    ),
    "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(": (
        "collective-timeout"
    ),
    "torch.distributed.DistBackendError: NCCL error in: x.cpp:1, unhandled system": (
        "nccl"
    ),
    "ncclSystemError: System call (e.g. socket, malloc) failed": "nccl",
    "RuntimeError: CUDA error: an illegal memory access was encountered": "cuda",
    "NVRM: Xid (PCI:0000:3b:00): 13, pid=1, Graphics Exception": "cuda",
    "OSError: [Errno 28] No space left on device: 'x'": "disk-full",
    "OSError: [Errno 122] Disk quota exceeded": "quota",
    "OSError: [Errno 116] Stale file handle": "file-system",
    "OSError: [Errno 24] Too many open files": "open-files",
    "Fatal Python error: Bus error": "shared-memory",
    "ModuleNotFoundError: No module named 'nemo_rl'": "import",
    "libcudart.so.12: cannot open shared object file: No such file": "import",
    "PermissionError: [Errno 13] Permission denied: '/x'": "permission",
    "FileNotFoundError: [Errno 2] No such file or directory: '/data'": "missing-file",
    "TrainingError: the loss of step 3 is not finite": "not-finite",
    "Fatal Python error: Segmentation fault": "crash",
    "kernel: python[77]: segfault at 0 ip 0": "crash",
    "slurmstepd: error: *** STEP 5.0 ON n1 CANCELLED AT x DUE TO PREEMPTION ***": (
        "preempted"
    ),
    "slurmstepd: error: *** JOB 5 ON n1 CANCELLED AT x DUE TO TIME LIMIT ***": (
        "time-limit"
    ),
    "srun: error: Node failure on n1": "node-failure",
    "Failed to connect to GCS at address 1.2.3.4:5 within 5 seconds.": "ray-lost",
    "RuntimeError: [../gloo/pair.cc:534] Connection closed by peer [1.2.3.4]:5": (
        "peer-lost"
    ),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_what_programs_print(message):
    cause, line = diagnose(f"before\n  {message}\nafter")
    assert (cause.name, line) == (MESSAGES[message], message)


def test_every_cause_is_tried():
    assert {cause.name for cause in CAUSES} >= (CONSEQUENCES | FROM_OUTSIDE)
    assert {cause.name for cause in CAUSES} == set(MESSAGES.values())


def test_the_stronger_text_counts():
    kernel = ["kernel: Out of memory: Killed process 1"]
    assert diagnose(kernel, "Connection reset by peer")[0].name == "oom-killer"
    assert diagnose([], "Connection reset by peer", kernel)[0].name == "peer-lost"


def test_only_some_causes_may_come_into_question():
    line = "Connection reset by peer"
    assert diagnose(line, names=FROM_OUTSIDE) is None
    assert diagnose(line, names=CONSEQUENCES)[0].name == "peer-lost"


def test_our_own_advice_is_no_evidence():
    advice = "The worker died.\nWhat to do: look for a segmentation fault in dmesg"
    assert diagnose(advice) is None
    assert diagnose("KeyError: 'x'", []) is None


def test_causes_are_worded_for_a_sentence():
    for cause in CAUSES:
        re.compile(cause.pattern)
        assert not cause.text.endswith(".") and not cause.cure.endswith(".")
        assert cause.text and cause.cure
