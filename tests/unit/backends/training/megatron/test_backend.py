"""The engine's own promises: reference weights, counts, metrics, log-prob batches."""

from __future__ import annotations

import pytest
import torch

from tests.fakes import models
from tests.functional.engines import engine, grpo_batch, policy_config
from tests.functional.ranks import run_ranks
from tests.functional.sessions import LAYOUTS, Session


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "qwen2"
    return models.save(folder, "qwen2", tied=True, layers=2, hidden=128)


def _reference_over_a_life(rank, folder, layout, path):
    session = Session(rank, folder, layout)
    base = session.scores()
    references = [session.scores(reference=True)]
    session.step(0)
    session.step(1)
    before = session.weights()
    references.append(session.scores(reference=True))
    after = session.weights()
    moved = session.scores()
    session.save(path)
    session.step(2)
    session.backend.load_checkpoint(path)
    references.append(session.scores(reference=True))
    restored = session.scores()
    untouched = all(torch.equal(before[n], after[n]) for n in before)
    return base, references, moved, restored, untouched


@pytest.mark.parametrize("layout", LAYOUTS)
def test_reference_stays_the_base_model(source, tmp_path, layout):
    world = LAYOUTS[layout][0]
    results = run_ranks(
        _reference_over_a_life, world, source, layout, tmp_path / "checkpoint"
    )
    assert all(untouched for *_, untouched in results)
    scored = [r for r in results if r[0] is not None]
    assert scored
    for base, references, moved, restored, _ in scored:
        for reference in references:
            assert torch.equal(reference, base)
        assert (moved - base).abs().max() > 1e-2
        assert torch.equal(restored, moved)


def _reloaded_in_a_new_engine(rank, folder, path):
    session = Session(rank, folder, "one")
    base = session.scores()
    if path.exists():
        session.backend.load_checkpoint(path)
    else:
        session.step(0)
        session.save(path)
    return base, session.scores(reference=True), session.scores()


def test_reference_after_a_resume_is_the_base_not_the_checkpoint(source, tmp_path):
    path = tmp_path / "checkpoint"
    ((_, _, trained),) = run_ranks(_reloaded_in_a_new_engine, 1, source, path)
    ((base, reference, now),) = run_ranks(_reloaded_in_a_new_engine, 1, source, path)
    assert torch.equal(reference, base)
    assert torch.equal(now, trained)
    assert not torch.equal(now, base)


def _without_reference(rank, folder):
    backend = engine(rank, folder, policy_config())
    before = [p.clone() for p in backend.model.parameters()]
    with pytest.raises(RuntimeError, match="set up without reference weights"):
        backend.get_reference_logprobs(grpo_batch())
    return all(
        torch.equal(a, b)
        for a, b in zip(before, backend.model.parameters(), strict=True)
    )


def test_reference_that_was_not_kept_is_an_error(source):
    assert run_ranks(_without_reference, 1, source) == [True]


class CountingLoss:
    """The mean negative log-prob; metrics tell what each call was given."""

    def __call__(self, batch, output):
        mask = batch["token_mask"][:, 1:] * batch["sample_mask"][:, None]
        logprobs = output.logprobs[:, 1:]
        off_mask = (output.logprobs * (batch["token_mask"] == 0)).abs().sum()
        share = -(logprobs * mask).sum() / batch["global_valid_tokens"]
        return share, {
            "tokens": mask.sum(),
            "rows": torch.tensor(float(len(mask))),
            "column_0": output.logprobs[:, 0].abs().sum(),
            "off_mask": off_mask,
        }


class TensorLoss(CountingLoss):
    """A loss that returns no metrics."""

    def __call__(self, batch, output):
        return super().__call__(batch, output)[0]


def _steps_with(rank, folder, size, loss):
    from tests.functional.engines import with_counts

    config = policy_config(train_micro_batch_size=size)
    backend = engine(rank, folder, config)
    batch = with_counts(grpo_batch(rows=5))
    result = backend.train_step(batch, loss)
    return result, batch["global_valid_tokens"].item(), backend.updates


def test_train_step_reports_each_micro_batch(source):
    ((result, tokens, updates),) = run_ranks(_steps_with, 1, source, 2, CountingLoss())
    micro = result["micro_metrics"]
    assert [m["rows"] for m in micro] == [2.0, 2.0, 2.0]  # the last one is filled up
    assert sum(m["tokens"] for m in micro) == tokens
    assert all(m["column_0"] == m["off_mask"] == 0.0 for m in micro)
    assert result["update_successful"] is True
    assert result["grad_norm"] > 0
    assert result["learning_rate"] == 1e-2
    assert updates == 1


def test_reported_loss_does_not_depend_on_the_micro_batches(source):
    losses, norms = [], []
    for size in (1, 2, 5):
        ((result, _, _),) = run_ranks(_steps_with, 1, source, size, TensorLoss())
        assert all(set(m) == {"loss"} for m in result["micro_metrics"])
        losses.append(sum(m["loss"] for m in result["micro_metrics"]))
        norms.append(result["grad_norm"])
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)
    assert norms == pytest.approx([norms[0]] * 3, abs=1e-5)
    # A model of random weights is about as unsure as a uniform one.
    assert 4.0 < losses[0] < 7.0


def _masked_update(rank, folder):
    from tests.functional.engines import with_counts

    backend = engine(rank, folder, policy_config(optimizer=NO_DECAY))
    before = [p.clone() for p in backend.model.parameters()]
    batch = grpo_batch()
    batch["sample_mask"] = torch.zeros(8)
    from nemo_rl.algorithms.grpo.config import ClippedPGLossConfig
    from nemo_rl.algorithms.grpo.loss import GRPOLossFn

    loss = GRPOLossFn(ClippedPGLossConfig(reference_policy_kl_penalty=0.1))
    result = backend.train_step(with_counts(batch), loss)
    same = all(
        torch.equal(a, b)
        for a, b in zip(before, backend.model.parameters(), strict=True)
    )
    return result["grad_norm"], same


NO_DECAY = {"kwargs": {"lr": 1e-2, "weight_decay": 0.0}}


def test_batch_without_a_valid_token_changes_nothing(source):
    ((norm, same),) = run_ranks(_masked_update, 1, source)
    assert norm == 0.0
    assert same


def _score_in_batches(rank, folder, size, columns):
    changes = {"logprob_batch_size": size, "generation": {"temperature": 2.0}}
    backend = engine(rank, folder, policy_config(**changes))
    batch = grpo_batch(rows=5)
    batch["input_ids"] = torch.nn.functional.pad(batch["input_ids"], (0, columns))
    batch["token_mask"] = torch.nn.functional.pad(batch["token_mask"], (0, columns))
    return backend.get_logprobs(batch), batch["token_mask"]


def test_logprobs_do_not_depend_on_batches_or_padding(source):
    ((want, _),) = run_ranks(_score_in_batches, 1, source, 5, 0)
    for size, columns in [(1, 0), (2, 7), (3, 0)]:
        ((got, mask),) = run_ranks(_score_in_batches, 1, source, size, columns)
        assert got.shape == mask.shape
        assert (got[mask == 0] == 0).all()
        width = want.shape[1]
        torch.testing.assert_close(got[:, :width], want, atol=1e-5, rtol=1e-5)


def test_logprobs_follow_the_sampling_temperature(source):
    import transformers

    ((got, mask),) = run_ranks(_score_in_batches, 1, source, 5, 0)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32
    )
    ids = grpo_batch(rows=5)["input_ids"]
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits / 2.0, -1)
    want = logprobs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    want = torch.nn.functional.pad(want, (1, 0)) * mask
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def _shut_down(rank, folder):
    backend = engine(rank, folder, policy_config())
    backend.shutdown()
    backend.shutdown()
    return torch.distributed.is_initialized()


def test_shutdown_leaves_the_process_group_and_may_be_repeated(source):
    assert run_ranks(_shut_down, 1, source) == [False]
