"""A model with experts goes on where it stopped, also over another number of ranks.

megatron-core has one optimizer where experts are whole and two where they are divided,
and a pipeline stage without experts has nothing for the second.
"""

from __future__ import annotations

import pytest

from tests.functional.ranks import run_ranks
from tests.functional.sessions import merged
from tests.functional.test_convert import WIDE, saved, session


def _life(rank, folder, layout, source, target):
    """Load what there is, make an update, save, and make another one."""
    one = session(rank, folder, layout)
    if source is not None:
        one.backend.load_checkpoint(source)
        one.step(1)
    else:
        one.step(0)
        one.save(target)
        one.step(1)
    return one.weights()


@pytest.mark.parametrize(
    ("family", "before", "after", "tolerance"),
    [
        pytest.param("deepseek_v3", "ep2pp2", "ep2pp2", 0.0, marks=pytest.mark.slow),
        pytest.param("deepseek_v3", "ep2pp2", "one", 1e-6, marks=pytest.mark.slow),
        ("qwen3_moe", "one", "ep2", 1e-6),
        pytest.param("qwen3_moe", "pp2", "ep2pp2", 1e-6, marks=pytest.mark.slow),
    ],
)
def test_resume_with_experts(tmp_path, family, before, after, tolerance):
    source, path = saved(tmp_path / "source", family), tmp_path / "checkpoint"
    want = merged(run_ranks(_life, WIDE[before][0], source, before, None, path))
    got = merged(run_ranks(_life, WIDE[after][0], source, after, path, None))
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert (value - got[name]).abs().max() <= tolerance, name
