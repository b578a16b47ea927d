"""Checkpoints of the DTensor engine: exact where they were written, whole elsewhere.

Also its Hugging Face folder and its reference weights, which a life includes.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from nemo_rl.algorithms.grpo.config import ClippedPGLossConfig
from nemo_rl.algorithms.grpo.loss import GRPOLossFn
from nemo_rl.utils.exceptions import CheckpointError
from tests.fakes import models
from tests.functional.engines import dtensor_config, engine, grpo_batch, shard
from tests.functional.ranks import run_ranks

LOSS = GRPOLossFn(ClippedPGLossConfig(reference_policy_kl_penalty=0.1))
WARM_UP = {"scheduler": [{"name": "LinearLR", "kwargs": {"total_iters": 10}}]}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "qwen3"
    return models.save(folder, "qwen3", tied=True, layers=2)


def _session(rank, folder, tp, seed):
    config = dtensor_config(tp, **WARM_UP)
    return engine(rank, folder, config, keep_reference=True, seed=seed)


def _steps(backend, rank, numbers):
    facts = []
    for number in numbers:
        batch = shard(grpo_batch(seed=number), rank, backend.config)
        result = backend.train_step(batch, LOSS)
        facts.append((result["grad_norm"], result["learning_rate"]))
    return facts


def _weights(backend):
    return {name: w.clone() for name, w in backend.export_weights()}


def _written(rank, folder, tp, path):
    """Four updates, with files after the second; what they hold, what follows."""
    backend = _session(rank, folder, tp, seed=5)
    base = backend.get_logprobs(grpo_batch())
    _steps(backend, rank, [0, 1])
    for part in ("checkpoint", "without", "hf"):
        (path / part).mkdir(parents=True, exist_ok=True)
    backend.save_checkpoint(path / "checkpoint")
    backend.save_checkpoint(path / "without", with_optimizer=False)
    backend.save_hf(path / "hf")
    draws = [random.random(), torch.rand(1).item()]
    scores = backend.get_logprobs(grpo_batch())
    reference = backend.get_reference_logprobs(grpo_batch())
    assert torch.equal(reference, base) and not torch.equal(scores, base)
    facts = _steps(backend, rank, [2, 3])
    return draws, scores, facts, _weights(backend), base


def _resumed(rank, folder, path, cases):
    """The last two updates after a load, for each tensor-parallel size."""
    results = []
    for tp in cases:
        backend = _session(rank, folder, tp, seed=99)
        backend.load_checkpoint(path / "checkpoint")
        draws = [random.random(), torch.rand(1).item()]
        scores = backend.get_logprobs(grpo_batch())
        reference = backend.get_reference_logprobs(grpo_batch())
        facts = _steps(backend, rank, [2, 3])
        assert backend.updates == 4
        results.append((draws, scores, facts, _weights(backend), reference))
    return results


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    return run_ranks(_written, 1, source, 1, path)[0], path


def test_a_resume_is_exact_to_the_bit(source, written):
    want, path = written
    (((got),),) = run_ranks(_resumed, 1, source, path, [1])
    assert got[0] == want[0] and got[2] == want[2]
    assert torch.equal(got[1], want[1]) and torch.equal(got[4], want[4])
    for name, value in want[3].items():
        assert torch.equal(got[3][name], value), name


def test_a_resume_under_another_layout_goes_on(source, written):
    want, path = written
    for results in run_ranks(_resumed, 2, source, path, [2, 1]):
        for got in results:
            torch.testing.assert_close(got[1], want[1], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(got[4], want[4], atol=1e-5, rtol=1e-5)
            assert [rate for _, rate in got[2]] == [rate for _, rate in want[2]]
            for name, value in want[3].items():
                assert (got[3][name] - value).abs().max() < 1e-5, name


def test_the_folder_is_what_transformers_loads(written):
    import transformers

    want, path = written
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path / "hf", dtype=torch.float32
    )
    batch = grpo_batch()
    with torch.no_grad():
        scores = torch.log_softmax(model(batch["input_ids"]).logits, -1)
    chosen = scores[:, :-1].gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    chosen = chosen * batch["token_mask"][:, 1:]
    torch.testing.assert_close(chosen, want[1][:, 1:], atol=1e-5, rtol=1e-5)


def test_the_converter_reads_the_checkpoint(written, tmp_path):
    from nemo_rl.converters.dcp import dcp_to_hf
    from nemo_rl.converters.formats.hf import HfWeights

    _, path = written
    config = path / "checkpoint" / "hf"
    dcp_to_hf(path / "checkpoint" / "weights", tmp_path / "hf", config=config)
    with HfWeights(tmp_path / "hf") as got, HfWeights(path / "hf") as want:
        assert got.names() == want.names()
        for name in want.names():
            assert torch.equal(got.tensor(name), want.tensor(name))


def _loads(rank, folder, paths):
    backend = _session(rank, folder, 1, seed=1)
    errors = []
    for path in paths:
        try:
            backend.load_checkpoint(path)
            errors.append((backend.updates, len(backend.optimizer.state)))
        except CheckpointError as error:
            errors.append(str(error))
    return errors


def test_what_a_checkpoint_lacks_is_said(source, written, tmp_path):
    _, path = written
    cut = Path(shutil.copytree(path / "checkpoint", tmp_path / "cut"))
    (part,) = (cut / "weights").glob("*.distcp")
    part.write_bytes(part.read_bytes()[:1000])
    code = Path(shutil.copytree(path / "checkpoint", tmp_path / "code"))
    (code / "weights" / ".metadata").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    other = Path(shutil.copytree(path / "checkpoint", tmp_path / "other"))
    (other / "contents.json").write_text('{"optimizer": true}')
    paths = [path / "without", other, cut, code, tmp_path / "none"]
    ((without, theirs, *broken),) = run_ranks(_loads, 1, source, paths)
    assert without == (2, 0)
    assert "by the training backend 'megatron' and 'dtensor' is on. Go on" in theirs
    for error in broken:
        assert "could not read the checkpoint" in error, error
    assert "it asks for os.system" in broken[1]
