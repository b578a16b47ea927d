"""Every hook reaches every callback in order; errors say whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_rl.trainers.callbacks import HOOKS, Callback, CallbackList
from nemo_rl.utils.exceptions import ConfigurationError, RewardError, TrainingError

ARGUMENTS = {
    "on_train_begin": ("trainer",),
    "on_train_end": ("trainer", "result"),
    "on_epoch_begin": ("trainer", 0),
    "on_epoch_end": ("trainer", 0, {"loss": 1.0}),
    "on_step_begin": ("trainer", 1),
    "on_step_end": ("trainer", 1, {"loss": 1.0}),
    "on_validation_end": ("trainer", 1, {"accuracy": 0.5}),
    "on_checkpoint": ("trainer", Path("step_000001")),
}


class Recorder(Callback):
    def __init__(self, calls, name):
        for hook in HOOKS:
            setattr(self, hook, self._record(calls, name, hook))

    @staticmethod
    def _record(calls, name, hook):
        return lambda *args: calls.append((name, hook, args))


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_are_forwarded_in_order(hook):
    calls = []
    callbacks = CallbackList([Recorder(calls, "a"), Callback(), Recorder(calls, "b")])
    getattr(callbacks, hook)(*ARGUMENTS[hook])
    assert calls == [("a", hook, ARGUMENTS[hook]), ("b", hook, ARGUMENTS[hook])]


def test_the_table_of_this_test_is_complete():
    assert set(ARGUMENTS) == set(HOOKS)
    assert len(CallbackList()) == 0 and len(CallbackList([Callback()])) == 1


def test_a_hook_may_add_to_the_metrics():
    class Add(Callback):
        def on_step_end(self, trainer, step, metrics):
            metrics["mine"] = step

    metrics = {}
    CallbackList([Add()]).on_step_end(None, 3, metrics)
    assert metrics == {"mine": 3}


class Failing(Callback):
    def __init__(self, error):
        self.error = error

    def on_step_end(self, trainer, step, metrics):
        raise self.error


def test_an_error_names_the_callback():
    callbacks = CallbackList([Failing(KeyError("loss"))])
    expected = "callback Failing.on_step_end failed: KeyError: 'loss'"
    with pytest.raises(TrainingError, match=expected) as error:
        callbacks.on_step_end(None, 1, {})
    assert isinstance(error.value.__cause__, KeyError)


def test_our_errors_keep_their_class_and_get_a_note():
    with pytest.raises(RewardError) as error:
        CallbackList([Failing(RewardError("bad"))]).on_step_end(None, 1, {})
    assert error.value.__notes__ == ["raised in callback Failing.on_step_end"]


def test_ctrl_c_passes():
    with pytest.raises(KeyboardInterrupt):
        CallbackList([Failing(KeyboardInterrupt())]).on_step_end(None, 1, {})


def test_what_is_no_callback_is_refused():
    with pytest.raises(ConfigurationError, match="use Callback\\(\\) instead"):
        CallbackList([Callback])
    with pytest.raises(ConfigurationError, match="Callback, got 3"):
        CallbackList([3])


def test_a_misspelt_hook_is_refused():
    class Misspelt(Callback):
        def on_step_ends(self, trainer, step, metrics):
            pass

    with pytest.raises(ConfigurationError, match="Did you mean on_step_end"):
        CallbackList([Misspelt()])
