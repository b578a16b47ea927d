"""Which of several failures is shown, and how."""

import pickle

from nemo_rl.distributed.failures import (
    Failure,
    dead_worker,
    foreign_error,
    placed,
    root_cause,
)
from nemo_rl.distributed.worker_shell import Place
from nemo_rl.utils.exceptions import DataError, ResourceError, WorkerError

LOST = Failure(WorkerError("rank 0: Connection closed by peer"), died=False)
BUG = Failure(WorkerError("rank 1: KeyError"), died=False)
DEATH = Failure(WorkerError("rank 2 died"), died=True)


def test_a_death_beats_a_bug_beats_a_lost_connection():
    assert root_cause([LOST, BUG, DEATH], size=3) is DEATH.error
    assert root_cause([LOST, BUG], size=3, group="Trainer") is BUG.error
    assert BUG.error.place == {"group": "Trainer"}
    assert "2 of 3 ranks failed; this one is shown." in BUG.error.__notes__


def test_a_place_is_added_once():
    error = placed(placed(DataError("bad"), rank=1, host="n0"), rank=1, host="n0")
    assert str(error) == "bad (rank 1 on host n0)"
    assert error.place == {"rank": 1, "host": "n0"}
    copy = pickle.loads(pickle.dumps(error))
    assert copy.place == error.place


def test_a_trace_is_shortened_and_loses_its_colours():
    trace = "\n".join(["\x1b[36mray::f()\x1b[39m", *[f"line {i}" for i in range(30)]])
    text = str(foreign_error("f", "KeyError: 1", rank=0, host="n0", trace=trace))
    assert "line 29" in text and "line 5\n" not in text and "\x1b" not in text


def test_no_memory_is_a_matter_of_resources():
    for summary in ("OutOfMemoryError: CUDA out of memory.", "MemoryError: "):
        error = foreign_error("train_step", summary, rank=1, host="n0", trace="long")
        assert isinstance(error, ResourceError) and "long" not in str(error)
        assert "rank 1 on host n0 ran out of memory in train_step()" in str(error)
        assert "lower policy.train_micro_batch_size" in str(error)


def test_a_death_says_where_why_and_what_to_do():
    place = Place(host="n1", address="1.2.3.4", node_id="ab" * 20, pid=7)
    reason = (
        "The actor died.\nWorker exit detail: killed by the OOM killer. "
        "Some common causes include: (1) everything"
    )
    error = dead_worker("train", reason, rank=3, place=place, log_tail="last")
    assert error.place == {"rank": 3, "host": "n1", "pid": 7, "died": True}
    text = str(error)
    assert "rank 3 on host n1 (node abababababab, process 7) died in train()" in text
    assert "killed by the OOM killer." in text and "common causes" not in text
    assert "train_micro_batch_size" in text and text.endswith("log:\nlast")
    unplaced = str(dead_worker("start", "", rank=0, place=None, log_tail=""))
    assert "had not started yet" in unplaced and "no reason given" in unplaced
