"""WorkerShell around a plain object, without Ray."""

import os

import pytest

from nemo_rl.distributed.rank import RankInfo
from nemo_rl.distributed.worker_shell import (
    Place,
    WorkerShell,
    library_versions,
    read_tail,
    require_versions,
    sort_key,
)
from nemo_rl.utils.exceptions import ResourceError


class Worker:
    def __init__(self, info, plus):
        self.plus, self.ended = plus, False

    def add(self, x, y=0):
        return x + y + self.plus

    def shutdown(self):
        self.ended = True


def place(host, gpus=(), pid=1, **more):
    return Place(
        host=host, address="", node_id=host, pid=pid, gpu_ids=list(gpus), **more
    )


def test_it_builds_calls_and_closes(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "3")
    shell = WorkerShell()
    assert "SLURM_PROCID" not in os.environ
    shell.close()
    shell.build(Worker, RankInfo(rank=0, world_size=1), {"plus": 10})
    assert shell.call("add", ((1,), {"y": 2})) == 13
    shell.close()
    assert shell._worker.ended
    assert shell.free_port() > 1024


def test_processes_sort_by_host_number_then_gpu():
    places = [place("n10"), place("n2", [1]), place("n2", [0])]
    order = [(p.host, p.gpu_ids) for p in sorted(places, key=sort_key)]
    assert order == [("n2", [0]), ("n2", [1]), ("n10", [])]


def test_the_tail_of_a_log_leaves_rays_lines_out(tmp_path):
    import socket

    log = tmp_path / "worker.err"
    log.write_text(":actor_name:WorkerShell\n" + "\n".join(f"l{i}" for i in range(40)))
    tail = read_tail(place(socket.gethostname(), log_file=str(log)))
    assert tail.splitlines()[-1] == "l39" and len(tail.splitlines()) == 15
    assert read_tail(place(socket.gethostname(), log_file=str(tmp_path / "no"))) == ""
    assert read_tail(place("elsewhere")) == ""


def test_workers_have_the_libraries_of_the_driver():
    here = library_versions()
    assert here["nemo_rl"] and here["torch"] != "none"
    same = place("n1", versions=dict(here))
    require_versions([same, same], here)
    other = place("n2", versions={**here, "torch": "1.0"})
    expected = rf"torch is 1.0 on host n2 and {here['torch']} where the driver runs"
    with pytest.raises(ResourceError, match=expected.replace("+", r"\+")):
        require_versions([same, other], here)
