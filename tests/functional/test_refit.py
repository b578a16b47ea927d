"""Trained weights reach two other processes, bit for bit, over every CPU transport."""

from __future__ import annotations

import datetime
import pickle
from dataclasses import replace

import pytest
import torch.distributed as dist

from nemo_rl.backends.refit.buckets import ALIGN
from nemo_rl.converters.formats.hf import HfWeights
from nemo_rl.models.policy.workers import PolicyWorker
from tests.fakes import models
from tests.fakes.refit_processes import (
    Outcome,
    StoreProcess,
    digest,
    make_link,
    receive,
)
from tests.functional.engines import dtensor_config, grpo_batch, policy_config, shard
from tests.functional.ranks import run_ranks

TRANSPORTS = ("gloo", "ipc", "files")
BUCKET = 1 << 15
LAYOUTS = {
    "one": (1, {}),
    "tp2": (2, {"tp": 2}),
    "pp2": (2, {"pp": 2}),
    "dp2": (2, {}),
}


class Digests:
    """A WeightObserver."""

    def __init__(self):
        self.found = {}

    def __call__(self, name, tensor):
        assert tensor.is_contiguous()
        self.found[name] = digest(tensor)

    def report(self):
        return self.found


def _client(host, port):
    wait = datetime.timedelta(seconds=60)
    return dist.TCPStore(host, port, wait_for_workers=False, timeout=wait)


def _rank(rank, folder, config, link, train):
    """Train, plan, send over every transport; digests of what this rank exports."""
    worker = PolicyWorker(rank, policy=config.to_dict(), model_folder=str(folder))
    if train:
        from nemo_rl.algorithms.grpo.loss import GRPOLossFn
        from tests.functional.sessions import LOSS

        batch = shard(grpo_batch(), rank, config)
        worker.train_step(batch, GRPOLossFn(LOSS.model_copy(update=_NO_KL)))
    plans = [None] * rank.world_size
    dist.all_gather_object(plans, worker.refit_plan())
    link = replace(link, stages=tuple(tuple(p) for p in plans if p))
    if rank.rank == 0:
        _client(link.host, link.port).set("link", pickle.dumps(link))
    sent = {
        kind: worker.send_weights(_over(link, kind), Digests) for kind in TRANSPORTS
    }
    weights = {n: digest(w) for n, w in worker.training.export_weights()}
    return [p is not None for p in plans], weights, sent


_NO_KL = {"reference_policy_kl_penalty": 0.0}


def _over(link, kind):
    return replace(link, transport=kind, group=f"{kind}.0")


def _receiver(host, port, index):
    link = pickle.loads(_client(host, port).get("link"))
    return {kind: receive(_over(link, kind), index) for kind in TRANSPORTS}


def transfer(folder, config, world_size, scratch, *, train=False):
    """Answers of the training ranks and of the receivers."""
    store = StoreProcess()
    try:
        link = make_link(
            store,
            [],
            num_receivers=2,
            folder=str(scratch),
            bucket_bytes=BUCKET,
        )
        receivers = [Outcome(_receiver, store.host, store.port, i) for i in range(2)]
        ranks = run_ranks(_rank, world_size, folder, config, link, train)
        return ranks, [receiver.result() for receiver in receivers]
    finally:
        store.close()


def check(ranks, receivers):
    """Every receiver has what the ranks export, and nobody held much."""
    exported = {name: d for _, weights, _ in ranks for name, d in weights.items()}
    for received in receivers:
        assert not isinstance(received, Exception), received.__notes__
        for kind, (found, stats) in received.items():
            assert dict(found) == exported, kind
            assert len(found) == len(exported)
            assert stats["peak_extra_bytes"] <= 2 * _largest(exported)
    for _, _, sent in ranks:
        for kind, stats in sent.items():
            if not stats:
                continue
            assert stats["error"] is None, kind
            assert stats["peak_extra_bytes"] <= 2 * _largest(exported)
            assert stats["observed"].items() <= exported.items()
    return exported


def _largest(exported):
    # The embedding of 131 x 64 floats is alone in a bucket that is larger than others.
    assert any("(131, 64)" in shape for shape in exported.values())
    return max(BUCKET, -(-131 * 64 * 4 // ALIGN) * ALIGN + 2 * ALIGN)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        tied: models.save(root / str(tied), "qwen3", tied=tied, layers=2, hidden=64)
        for tied in (True, False)
    }


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_receivers_have_the_folder_bit_for_bit(sources, tmp_path, layout, tied):
    size, sizes = LAYOUTS[layout]
    answers = transfer(sources[tied], policy_config(**sizes), size, tmp_path)
    exported = check(*answers)
    with HfWeights(sources[tied]) as weights:
        assert exported == {n: digest(weights.tensor(n)) for n in weights.names()}
    senders = [[bool(s["gloo"]) for *_, s in answers[0]], answers[0][0][0]]
    wanted = {"one": [True], "pp2": [True, True]}.get(layout, [True, False])
    assert senders == [wanted, wanted]


def test_trained_weights_of_experts_over_two_replicas(tmp_path):
    """The experts of a layer are on both ranks, which are two replicas of the rest."""
    folder = models.save(tmp_path / "m", "mixtral", tied=False, layers=2, hidden=64)
    config = policy_config(megatron_cfg={"expert_model_parallel_size": 2})
    ranks, receivers = transfer(folder, config, 2, tmp_path / "files", train=True)
    exported = check(ranks, receivers)
    with HfWeights(folder) as weights:
        before = {n: digest(weights.tensor(n)) for n in weights.names()}
    assert exported.keys() == before.keys() and exported != before


def test_fsdp_weights_from_rank_0(sources, tmp_path):
    ranks, receivers = transfer(sources[False], dtensor_config(), 2, tmp_path)
    check(ranks, receivers)
    assert [bool(sent["ipc"]) for *_, sent in ranks] == [True, False]
