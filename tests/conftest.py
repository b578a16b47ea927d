"""What holds for every test: one thread, offline, and in CI no silent skips."""

from __future__ import annotations

import os

# Before torch is imported. Two processes on two cores are faster with one thread each,
# and compiling what runs once is not worth it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A developer's own settings decide nothing here.
for name in ("NEMO_RL_SITE", "NEMO_RL_ROOT", "NEMO_RL_RUN_DIR", "RAY_ADDRESS"):
    os.environ.pop(name, None)

from collections.abc import Iterator  # noqa: E402

import pytest  # noqa: E402

CI = os.environ.get("CI") == "true"

MAY_BE_SKIPPED_IN_CI = (
    "mounting a tmpfs is not allowed here",
    "this machine does not allow mounting a tmpfs",
    "needs root to mount a small tmpfs",
    "this disk is nearly full",
    "there is a GPU",
    "there is no GPU",
    "is installed",
)
"""Reasons that say something of the machine and nothing of the installation."""


def _refused(reason: object) -> bool:
    return CI and not any(text in str(reason) for text in MAY_BE_SKIPPED_IN_CI)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo
) -> Iterator[None]:
    """In CI a skipped test fails, unless its reason is in the table."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2]
        if _refused(reason):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} may not be skipped in CI: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """The same for a module that skips itself while it is collected."""
    report = yield
    if report.skipped and _refused(report.longrepr[2]):
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} may not be skipped in CI"
    return report
