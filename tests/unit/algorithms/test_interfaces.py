"""The bases of a user's loss and algorithm."""

from __future__ import annotations

import pytest
import torch

from nemo_rl.algorithms.interfaces import AlgorithmInterface, LossFunctionInterface
from nemo_rl.backends.training.base import LossFunction, ModelOutput


class MeanLoss(LossFunctionInterface):
    def compute_loss(self, batch, model_output):
        return batch["scale"] * model_output.logprobs.mean()


def test_loss_is_called_as_a_backend_calls_it():
    loss = MeanLoss()
    assert isinstance(loss, LossFunction)
    output = ModelOutput(logprobs=torch.tensor([[1.0, 3.0]]))
    assert loss({"scale": 2.0}, output).item() == 4.0


def test_loss_without_its_method_cannot_be_made():
    with pytest.raises(TypeError, match="compute_loss"):
        type("Incomplete", (LossFunctionInterface,), {})()


def test_algorithm_holds_policy_and_config_and_needs_both_methods():
    class Complete(AlgorithmInterface):
        def train(self):
            return "trained"

        def evaluate(self):
            return {}

    algorithm = Complete("policy", {"a": 1})
    assert (algorithm.policy, algorithm.config) == ("policy", {"a": 1})
    assert algorithm.train() == "trained"
    with pytest.raises(TypeError, match="evaluate"):
        type("Half", (AlgorithmInterface,), {"train": lambda self: None})(1, 2)
