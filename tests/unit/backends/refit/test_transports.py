"""Weights between real processes over every transport of the CPU, and what goes wrong.

NCCL and CUDA IPC are tested where there is a GPU.
"""

from __future__ import annotations

import itertools
import os
import resource
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from nemo_rl.backends.refit import control
from nemo_rl.backends.refit.base import TensorSpec, open_receiver, open_sender
from nemo_rl.distributed.rank import find_free_port
from nemo_rl.utils.exceptions import ConfigurationError, RefitError, ResourceError
from tests.fakes.refit_processes import (
    Outcome,
    StoreProcess,
    die,
    digest,
    make_link,
    receive,
    send,
    specs_of,
    tensors_of,
)

TRANSPORTS = ("gloo", "ipc", "files")
SHM = Path("/dev/shm")
STAGES = (
    specs_of(20),
    (),
    (
        TensorSpec("scalar", "bfloat16", ()),
        TensorSpec("nothing", "int8", (0, 3)),
        TensorSpec("large", "float32", (100, 100)),
        *specs_of(9, prefix="v"),
    ),
)
WANTED = [(n, digest(t)) for stage in STAGES for n, t in tensors_of(stage)]
every_transport = pytest.mark.parametrize("transport", TRANSPORTS)


@pytest.fixture
def store():
    process = StoreProcess()
    yield process
    process.close()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "refit"


def ended(*outcomes):
    """Results of processes, and that they left nothing behind."""
    return [outcome.result() for outcome in outcomes]


def clean(link):
    left = list(SHM.glob(f"nemo_rl-refit-{link.group}*"))
    left += list(Path(link.folder).glob("*")) if link.folder else []
    return not left


def _twice(role, link, index):
    """Two transfers of one membership; both results, and how many connections."""
    results = [role(replace(link, serial=serial), index) for serial in range(2)]
    (connection,) = control._OPEN.values()
    return results, len(connection.process_groups)


@every_transport
def test_all_receivers_get_all_stages_bit_for_bit(store, folder, transport):
    link = make_link(
        store, STAGES, transport=transport, num_receivers=2, folder=str(folder)
    )
    roles = [(send, i) for i in range(3)] + [(receive, i) for i in range(2)]
    done = ended(*[Outcome(_twice, role, link, index) for role, index in roles])
    for results, groups in done[3:]:
        assert groups == (2 if transport == "gloo" else 0)
        for found, stats in results:
            assert found == WANTED
            assert stats["tensors"] == len(WANTED)
            assert stats["seconds"] > 0
            # Two buckets, of which one is that of the large tensor.
            assert stats["peak_extra_bytes"] <= link.bucket_bytes + 41 * 1024
    for results, _ in done[:3]:
        first, second = results
        assert first["bytes_moved"] == second["bytes_moved"]
    moved = sum(results[0]["bytes_moved"] for results, _ in done[:3])
    assert moved == done[3][0][0][1]["bytes_moved"] > link.model_bytes
    assert clean(link)


@every_transport
def test_buckets_of_a_mebibyte_are_all_the_memory_that_is_held(
    store, folder, transport
):
    specs = [TensorSpec(f"w{i}", "bfloat16", (300, 1000)) for i in range(12)]
    link = make_link(
        store,
        [specs],
        transport=transport,
        folder=str(folder),
        bucket_bytes=1 << 20,
    )
    sent, (found, stats) = ended(Outcome(send, link, 0), Outcome(receive, link, 0))
    assert found == [(n, digest(t)) for n, t in tensors_of(specs)]
    assert sent["buckets"] == stats["buckets"] == 12
    assert sent["peak_extra_bytes"] <= 2 << 20
    assert stats["peak_extra_bytes"] <= 2 << 20
    # The bound is one: more would be held if all of it were.
    assert link.model_bytes > 6 << 20


def _keep(link):
    with open_receiver(link, 0) as weights:
        kept = list(weights)
    return [(name, digest(tensor)) for name, tensor in kept]


@every_transport
def test_tensors_that_are_kept_do_not_change(store, folder, transport):
    """vLLM keeps those of a layer until it has all of them."""
    specs = [TensorSpec(f"w{i}", "float32", (200, 120)) for i in range(10)]
    link = make_link(
        store, [specs], transport=transport, folder=str(folder), bucket_bytes=1 << 17
    )
    _, found = ended(Outcome(send, link, 0), Outcome(_keep, link))
    assert found == [(n, digest(t)) for n, t in tensors_of(specs)]


def _beside_a_default_group(link, index):
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{find_free_port()}", rank=0, world_size=1
    )
    found = receive(link, index)[0] if index is not None else send(link, 0)
    total = torch.ones(1)
    dist.all_reduce(total)
    return found, dist.get_world_size(), total.item()


def test_a_default_group_stays_what_it_is(store):
    link = make_link(store, STAGES[:1])
    outcomes = [Outcome(_beside_a_default_group, link, i) for i in (None, 0)]
    for _, world, total in ended(*outcomes):
        assert (world, total) == (1, 1.0)


@every_transport
def test_a_killed_sender_ends_the_receivers(store, folder, transport):
    link = make_link(
        store,
        STAGES,
        transport=transport,
        num_receivers=2,
        folder=str(folder),
        timeout_s=2.0,
    )
    Outcome(die, link, 0, "sender", 15)
    others = [Outcome(receive, link, i) for i in range(2)]
    for error in ended(*others):
        assert isinstance(error, RefitError), error
        assert "stage 0" in str(error) or "receiver" in str(error)
    assert max(other.seconds for other in others) < 15
    # What a killed process leaves goes with the next transfer.
    again = replace(link, group="again.0", num_receivers=1, stages=STAGES[:1])
    _, (found, _) = ended(Outcome(send, again, 0), Outcome(receive, again, 0))
    assert len(found) == len(STAGES[0])
    assert clean(link) and clean(again)


@every_transport
def test_a_killed_receiver_ends_the_sender_and_the_other_receiver(
    store, folder, transport
):
    link = make_link(
        store,
        [specs_of(60)],
        transport=transport,
        num_receivers=2,
        folder=str(folder),
        timeout_s=2.0,
    )
    Outcome(die, link, 0, "receiver", 12)
    others = [Outcome(send, link, 0), Outcome(receive, link, 1)]
    for error in ended(*others):
        assert isinstance(error, RefitError), error
    assert max(other.seconds for other in others) < 15
    assert clean(link)


@every_transport
def test_who_never_came_is_named(store, folder, transport):
    link = make_link(
        store,
        STAGES[:1],
        transport=transport,
        num_receivers=2,
        folder=str(folder),
        timeout_s=1.0,
    )
    errors = ended(Outcome(send, link, 0), Outcome(receive, link, 0))
    assert all(isinstance(error, RefitError) for error in errors), errors
    assert any("receiver 1 never came" in str(error) for error in errors), errors
    alone = replace(link, group="alone.0")
    (error,) = ended(Outcome(receive, alone, 0))
    assert "receiver 0 waited" in str(error) and "stage 0" in str(error)
    assert "never came" in str(error) and "timeout_s" in str(error)


def _slow(link, index):
    def pairs():
        for pair in tensors_of(link.stages[index]):
            time.sleep(0.15)
            yield pair

    return open_sender(link, index).send(pairs()).as_dict()


@every_transport
def test_a_slow_transfer_that_moves_is_no_late_one(store, folder, transport):
    specs = [TensorSpec(f"w{i}", "int8", (12_000,)) for i in range(12)]
    link = make_link(
        store,
        [specs, STAGES[0]],
        transport=transport,
        folder=str(folder),
        timeout_s=0.9,
    )
    sender = Outcome(_slow, link, 0)
    done = ended(sender, Outcome(send, link, 1), Outcome(receive, link, 0))
    assert not any(isinstance(each, Exception) for each in done), done
    assert sender.seconds > 2 * link.timeout_s


@every_transport
def test_the_driver_ends_all_waits_at_once(store, folder, transport):
    link = make_link(
        store,
        STAGES[:1],
        transport=transport,
        num_receivers=2,
        folder=str(folder),
        timeout_s=60.0,
    )
    waiting = [Outcome(send, link, 0), Outcome(receive, link, 0)]
    time.sleep(0.5)
    store.abort(link.group, "the engine of receiver 1 burnt down")
    for error in ended(*waiting):
        assert "receiver 1 burnt down" in str(error)
    assert max(each.seconds for each in waiting) < 5
    assert clean(link)


def _refuse(link, index, at):
    with open_receiver(link, index) as weights:
        for count, (name, _) in enumerate(weights):
            if count == at:
                raise ValueError(f"no place for {name}")


@every_transport
def test_a_receiver_that_cannot_load_says_so_to_the_others(store, folder, transport):
    link = make_link(
        store,
        [specs_of(60)],
        transport=transport,
        num_receivers=2,
        folder=str(folder),
        timeout_s=60.0,
    )
    others = [Outcome(send, link, 0), Outcome(receive, link, 1)]
    (own,) = ended(Outcome(_refuse, link, 0, 5))
    assert type(own) is ValueError
    for error in ended(*others):
        assert isinstance(error, RefitError)
        assert "ValueError: no place for w5" in str(error)
    assert max(each.seconds for each in others) < 5
    assert clean(link)


@every_transport
def test_sides_with_different_plans_notice(store, folder, transport):
    specs = [TensorSpec(f"w{i}", "int8", (100,)) for i in range(4)]
    link = make_link(store, [specs], transport=transport, folder=str(folder))
    other = replace(link, stages=((specs[1], specs[0], *specs[2:]),))
    _, error = ended(Outcome(send, link, 0), Outcome(receive, other, 0))
    assert isinstance(error, RefitError) and "another plan" in str(error)


def test_an_export_longer_than_its_plan_is_an_error_for_all(store):
    link = make_link(store, [specs_of(3)])

    def longer():
        more = itertools.chain(tensors_of(link.stages[0]), tensors_of(specs_of(1)))
        return open_sender(link, 0).send(more)

    error, other = ended(Outcome(longer), Outcome(receive, link, 0))
    assert "exports w0 after all" in str(error)
    # All the plan's tensors had come; whether it saw the end is a matter of time.
    assert isinstance(other, tuple | RefitError)


def test_a_file_that_lost_its_end_is_noticed(store, folder):
    link = make_link(store, STAGES[:1], transport="files", folder=str(folder))
    sender = Outcome(send, link, 0)
    path = folder / "refit-stage0-000000"
    while not path.exists():
        time.sleep(0.01)
    os.truncate(path, 5000)
    error, told = ended(Outcome(receive, link, 0), sender)
    assert "ended after 5000 bytes" in str(error)
    assert "ended after 5000 bytes" in str(told)
    assert clean(link)


def _on_a_full_disk(link):
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    return send(link, 0)


def test_a_full_disk_says_what_to_do(store, folder):
    folder.mkdir()
    (folder / "refit-stage0-000007").write_bytes(b"left by a crash")
    (folder / ".refit-stage0-000008").write_bytes(b"left by a crash")
    link = make_link(store, STAGES[:1], transport="files", folder=str(folder))
    error, told = ended(Outcome(_on_a_full_disk, link), Outcome(receive, link, 0))
    assert isinstance(error, ResourceError) and "bucket_mib" in str(error)
    assert "bucket_mib" in str(told)
    assert clean(link)


def test_full_shared_memory_says_what_to_do(store):
    total = os.statvfs(SHM)
    shape = (total.f_blocks * total.f_frsize + (1 << 20),)
    specs = [TensorSpec("huge", "int8", shape)]
    link = make_link(store, [specs], transport="ipc")

    def huge():
        open_sender(link, 0).send(iter([("huge", torch.zeros(1).expand(shape))]))

    error, told = ended(Outcome(huge), Outcome(receive, link, 0))
    assert isinstance(error, ResourceError) and "--shm-size" in str(error)
    assert "--shm-size" in str(told)
    assert clean(link)


def test_files_need_a_folder(store):
    link = make_link(store, STAGES[:1], transport="files")
    error, told = ended(Outcome(send, link, 0), Outcome(receive, link, 0))
    assert isinstance(error, ConfigurationError)
    assert "refit.folder" in str(told)


def test_a_driver_that_is_not_there_is_named(store):
    link = replace(make_link(store, STAGES[:1], timeout_s=1.0), port=find_free_port())
    (error,) = ended(Outcome(receive, link, 0))
    assert f"{link.host}:{link.port}" in str(error) and "port" in str(error)


def test_a_driver_that_goes_away_ends_all(store):
    link = make_link(store, STAGES[:1], num_receivers=2, timeout_s=60.0)
    waiting = [Outcome(send, link, 0), Outcome(receive, link, 0)]
    time.sleep(0.5)
    store.close()
    for error in ended(*waiting):
        assert "lost the driver" in str(error)


def test_there_is_no_other_participant(store):
    link = make_link(store, STAGES)
    with pytest.raises(RefitError, match="no receiver 1"):
        open_receiver(link, 1)
    with pytest.raises(RefitError, match="no stage 3"):
        open_sender(link, 3)


@pytest.mark.gpu
def test_memory_of_a_gpu_is_shared(store):
    """Sender and receiver on one GPU; started afresh, as CUDA cannot be forked."""
    import multiprocessing

    link = make_link(store, STAGES, transport="ipc", num_receivers=1)
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        sent = [pool.apply_async(_send_from_gpu, (link, i)) for i in range(3)]
        found, medium = pool.apply(_receive_on_gpu, (link,))
        assert {s.get()["medium"] for s in sent} <= {"CUDA IPC", ""}
    assert found == WANTED and medium == "CUDA IPC"


def _send_from_gpu(link, index):
    tensors = ((n, t.cuda()) for n, t in tensors_of(link.stages[index]))
    return open_sender(link, index, "cuda:0").send(tensors).as_dict()


def _receive_on_gpu(link):
    with open_receiver(link, 0, "cuda:0") as weights:
        found = [(name, digest(tensor.cpu())) for name, tensor in weights]
    return found, weights.stats.medium
