"""Refit drives both sides, counts, and makes one error of what goes wrong on either."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch

from nemo_rl.backends.refit.base import open_receiver
from nemo_rl.config.parallel import Coordinates
from nemo_rl.config.refit import RefitConfig
from nemo_rl.distributed.local import LocalCluster
from nemo_rl.models.policy.refit import Refit
from nemo_rl.models.policy.weight_sender import WeightSender
from nemo_rl.utils.exceptions import ConfigurationError, RefitError, WorkerError


class Sums:
    """A WeightObserver."""

    def __init__(self):
        self.found = {}

    def __call__(self, name, tensor):
        self.found[name] = (str(tensor.dtype), float(tensor.double().sum()))

    def report(self):
        return self.found


class Trainer:
    """Two weights, one above the other after every transfer; an engine's worker."""

    def __init__(self, rank_info, fail=False):
        self.exports, self.plans, self.fail = itertools.count(), 0, fail

    def _export(self):
        offset = next(self.exports)
        yield "matrix", torch.full((300, 200), float(offset))
        if self.fail:
            raise OSError("the disk is gone")
        yield "vector", torch.full((7,), float(offset))

    def _sender(self):
        self.device = torch.device("cpu")
        return WeightSender(Coordinates(0, 0, 0, 0), self._export, device=self.device)

    def refit_plan(self):
        self.plans += 1
        return self._sender().plan()

    def send_weights(self, link, observer=None):
        return self._sender().send(link, observer)


class Receivers:
    """Receivers in threads of this process, which keep what they were sent."""

    def __init__(self, count=2):
        self.num_receivers, self.membership, self.links = count, 0, []
        self.failing = None

    def receive(self, link, version):
        self.links.append(link)
        self.weights = [{} for _ in range(self.num_receivers)]
        answers, errors = [None] * self.num_receivers, []

        def run(index):
            try:
                with open_receiver(link, index) as weights:
                    for name, tensor in weights:
                        if self.failing is not None and index == 1:
                            raise self.failing
                        self.weights[index][name] = tensor.clone()
                answers[index] = weights.stats.as_dict()
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)

        threads = [
            threading.Thread(target=run, args=(i,)) for i in range(self.num_receivers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise next((e for e in errors if not isinstance(e, RefitError)), errors[0])
        return answers


@pytest.fixture
def made(tmp_path):
    """(refit, trainer, receivers) of options."""
    undo = []

    def make(*, fail=False, timeout_s=30.0, **options):
        group = LocalCluster().start_workers(Trainer, init_kwargs={"fail": fail})
        receivers = Receivers()
        config = RefitConfig(bucket_mib=1, timeout_s=timeout_s)
        options = {"transport": "gloo", "folder": str(tmp_path), **options}
        refit = Refit(group, receivers, config, **options)
        undo.extend([refit.close, group.shutdown])
        return refit, group.worker, receivers

    yield make
    for call in undo:
        call()


@pytest.mark.parametrize("transport", ["gloo", "ipc", "files"])
def test_every_transfer_brings_the_weights_of_its_time(made, transport):
    refit, trainer, receivers = made(transport=transport, observer=Sums)
    for version in (1, 2, 2):
        report = refit.run(version)
        value = float(len(receivers.links))  # one export went into the plan
        for weights in receivers.weights:
            assert torch.equal(weights["matrix"], torch.full((300, 200), value))
            assert torch.equal(weights["vector"], torch.full((7,), value))
        assert report.version == version and report.transport == transport
        assert report.model_bytes == 4 * (300 * 200 + 7)
        assert 0 < report.bytes_moved - report.model_bytes < 4 * 512
        assert 0 < report.sender_peak_bytes <= 2 << 20
        assert 0 < report.receiver_peak_bytes <= 2 << 20
        assert report.observed["vector"] == ("torch.float32", 7 * value)
        metrics = report.metrics()
        assert metrics["refit_bytes"] == report.bytes_moved
        assert metrics["refit_s"] == report.seconds > 0
        assert metrics["refit_gib_per_s"] > 0
        assert metrics["refit_peak_extra_mib"] <= 2
    assert trainer.plans == 1
    assert len({link.group for link in receivers.links}) == 1
    assert len({link.serial for link in receivers.links}) == 3


def test_another_membership_has_connections_of_its_own(made):
    refit, trainer, receivers = made()
    refit.run(1)
    receivers.membership, receivers.num_receivers = 1, 3
    refit.run(2)
    assert [set(weights) for weights in receivers.weights] == [{"matrix", "vector"}] * 3
    assert receivers.links[0].group != receivers.links[1].group
    assert trainer.plans == 1


def test_matrices_are_cast_on_the_way(made):
    refit, _, receivers = made(cast="bfloat16", observer=Sums)
    report = refit.run(1)
    (weights, _) = receivers.weights
    assert weights["matrix"].dtype == torch.bfloat16
    assert weights["vector"].dtype == torch.float32
    assert report.observed["matrix"] == ("torch.bfloat16", 60_000.0)
    assert report.model_bytes == 2 * 300 * 200 + 4 * 7


def test_a_receiver_that_fails_is_the_error_and_the_next_transfer_works(made):
    refit, _, receivers = made()
    refit.run(1)
    receivers.failing = WorkerError("engine 1 died")
    with pytest.raises(WorkerError, match="engine 1 died"):
        refit.run(2)
    receivers.failing = None
    report = refit.run(3)
    assert report.version == 3
    assert torch.equal(receivers.weights[1]["vector"], torch.full((7,), 3.0))


def test_a_trainer_that_fails_is_the_error(made):
    refit, trainer, _ = made(timeout_s=60.0)
    refit.run(1)
    trainer.fail = True
    with pytest.raises(WorkerError, match="the disk is gone"):
        refit.run(2)


def test_a_plan_that_no_longer_holds_is_the_error(made):
    refit, trainer, _ = made(timeout_s=60.0)
    refit.run(1)
    trainer._export = lambda: iter([("matrix", torch.zeros(2, 2))])
    with pytest.raises(RefitError, match="trainer exports matrix"):
        refit.run(2)


def test_files_need_a_folder():
    with pytest.raises(ConfigurationError, match="refit.folder"):
        Refit(None, None, RefitConfig(), transport="files")
