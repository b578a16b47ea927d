from __future__ import annotations

import pytest

from nemo_rl.infra.hang import SETUP_S, Stillness, judge, limit_of, report
from nemo_rl.infra.stacks import Process

HEAD = "Current thread 0x00 (most recent call first):\n"
COLLECTIVE = (
    '  File "/v/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", '
    "line 3000 in all_reduce\n"
    '  File "/repo/nemo_rl/backends/training/collectives.py", line 7 in total\n'
)
WORK = '  File "/repo/nemo_rl/data/rows.py", line 12 in read\n'
READING = (
    '  File "/v/lib/python3.11/site-packages/ray/_private/worker.py", line 9 in wait\n'
    '  File "/repo/nemo_rl/distributed/worker_groups.py", line 240 in _results\n'
)


def process(name, frames=COLLECTIVE, *, doing="train", state="", count=10, host="n0"):
    return Process(
        name=name,
        host=host,
        pid=100,
        doing=doing,
        seconds=30.0,
        count=count,
        state=state,
        stack=HEAD + frames if frames else "",
    )


DRIVER = process("driver", READING, doing="training")
RANKS = [process(f"PolicyWorker rank {i}") for i in range(4)]


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        (process("PolicyWorker rank 3", "", state="stopped"), "which stopped"),
        (process("PolicyWorker rank 3", ""), "which does not answer"),
        (
            process("PolicyWorker rank 3", WORK),
            "which is in train, at nemo_rl/data/rows.py:12 in read",
        ),
        (process("PolicyWorker rank 3", doing="save"), "which is in save"),
        (process("PolicyWorker rank 3", count=7), "has done 7 parts, others more"),
    ],
)
def test_the_one_that_is_not_as_the_others_is_named(odd, says):
    verdict = judge([DRIVER, *RANKS[:3], odd])
    assert verdict.names == ("PolicyWorker rank 3 on n0",)
    assert says in verdict.text


def test_the_driver_is_named_where_all_ranks_wait_for_it():
    driver = process("driver", WORK, doing="environment")
    ranks = [process(f"PolicyWorker rank {i}", doing="idle") for i in range(4)]
    assert judge([driver, *ranks]).names == ("driver on n0",)


def test_nobody_is_named_where_nobody_stands_out():
    verdict = judge([DRIVER, *RANKS])
    assert verdict.names == ()
    assert "each one waits for another" in verdict.text
    assert judge([]).names == ()


def test_the_thread_that_does_the_work_is_looked_at_among_others():
    stack = (
        'Thread 0x01 (most recent call first):\n  File "/v/lib/python3.11/threading.py"'
        ", line 331 in wait\n\n"
        f'Thread 0x02 (most recent call first):\n{WORK}  File "/repo/nemo_rl/'
        'distributed/worker_shell.py", line 90 in call\n\n'
        'Current thread 0x03 (most recent call first):\n  File "/v/lib/python3.11/'
        'selectors.py", line 468 in select\n'
    )
    one = Process(
        name="x",
        host="h",
        pid=1,
        doing="train",
        seconds=1,
        count=1,
        state="",
        stack=stack,
    )
    assert one.where.endswith("data/rows.py:12 in read")
    assert not one.waits


def test_stillness_warns_once_and_then_ends():
    now = [0.0]
    still = Stillness(lambda: now[0])
    told = []
    for second in range(0, 100, 5):
        now[0] = float(second)
        told.append(still.look(min(second, 20), 30.0))
    assert [5 * i for i, kind in enumerate(told) if kind == "warn"] == [30]
    assert 5 * told.index("hung") == 50
    assert still.look(20, None) == ""
    assert still.look(21, 30.0) == ""


def test_set_up_has_more_time_and_the_driver_sets_the_limit():
    worker = {"name": "worker", "count": 5}
    assert limit_of([worker]) is None
    assert limit_of([worker, {"hang_timeout_s": 60.0, "count": 0}]) == SETUP_S
    assert limit_of([worker, {"hang_timeout_s": 60.0, "count": 1}]) == 60.0
    assert limit_of([{"hang_timeout_s": None, "count": 1}]) is None


def test_the_report_begins_with_the_one_to_blame_and_is_short():
    ranks = [process(f"PolicyWorker rank {i}", host=f"n{i}") for i in range(1000)]
    ranks[777] = process("PolicyWorker rank 777", WORK, host="n777")
    still = Stillness(lambda: 0.0)
    still.look(0, 600.0)
    lines = report(ranks, judge(ranks), still).splitlines()
    assert lines[0].startswith("nothing has moved for 0 s (limit 600 s). It waits for")
    assert "PolicyWorker rank 777 on n777" in lines[1]
    assert "data/rows.py:12 in read" in lines[1]
    assert lines[-1].strip() == "and 984 more"
    assert len(lines) == 18
