"""PairedPolicy: a policy that learns, beside a generator of its own weights.

Hands training and scoring to one object, generation to the other, and moves weights
between them through the driver. For generators of one's own and small models.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from nemo_rl.backends.training.base import LossFunction
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.models.generation.interfaces import GenerationInterface
from nemo_rl.models.policy.interfaces import PolicyInterface
from nemo_rl.utils.exceptions import ConfigurationError

_WANTED = ("output_ids", "generation_lengths", "unpadded_sequence_lengths", "logprobs")


class PairedPolicy(PolicyInterface):
    """Trains ``policy`` and samples with ``generator``.

    The generator gets the weights at once, after every update and after a resume.

    Args:
        policy: has ``export_weights() -> dict``, as ``Policy`` does.
        generator: defines ``update_weights``; with a parameter ``version`` it is told
            what the weights are called, for ``token_versions`` of its output.

    Raises:
        ConfigurationError: one of the two lacks its part of the hand-over.

    Example:
        >>> policy = PairedPolicy(Policy(cluster, config), mine)  # doctest: +SKIP
        >>> GRPO(policy, config).train()  # doctest: +SKIP
    """

    generates_apart = True

    def __init__(self, policy: PolicyInterface, generator: GenerationInterface) -> None:
        own = type(generator)
        if own.update_weights is GenerationInterface.update_weights:
            raise ConfigurationError(
                f"{own.__name__} defines no update_weights(weights): it would go on "
                "sampling with its first weights. Define it; it gets a dict of Hugging "
                "Face names to tensors after every update."
            )
        if not hasattr(policy, "export_weights"):
            raise ConfigurationError(
                f"{type(policy).__name__} defines no export_weights(): {own.__name__} "
                "cannot follow what it learns. Define it to return a dict of Hugging "
                "Face names to tensors."
            )
        self.policy: Any = policy
        self.generator = generator
        asked = [hasattr(generator, name) for name in ("submit", "poll", "abort")]
        self.stream = generator if all(asked) else None
        parameters = inspect.signature(generator.update_weights).parameters
        self._tells_versions = "version" in parameters
        self.refit()

    def generate(self, data: BatchedDataDict, greedy: bool = False) -> BatchedDataDict:
        """Sample with the generator.

        Raises:
            ConfigurationError: its output lacks a column; log-probs are never made up.
        """
        self.generator.prepare_for_generation()
        output = self.generator.generate(data, greedy)
        self.generator.finish_generation()
        missing = [name for name in _WANTED if name not in output]
        if missing:
            raise ConfigurationError(
                f"{type(self.generator).__name__}.generate returned no "
                f"{', '.join(missing)}; see GenerationOutputSpec."
            )
        ended = torch.zeros(len(output["output_ids"]), dtype=torch.bool)
        return BatchedDataDict({"truncated": ended, **output})

    def get_logprobs(self, data: BatchedDataDict) -> BatchedDataDict:
        """See ``PolicyInterface``."""
        return self.policy.get_logprobs(data)

    def get_reference_logprobs(self, data: BatchedDataDict) -> BatchedDataDict:
        """See ``PolicyInterface``."""
        return self.policy.get_reference_logprobs(data)

    def train(self, data: BatchedDataDict, loss_fn: LossFunction) -> dict[str, Any]:
        """See ``PolicyInterface``."""
        return self.policy.train(data, loss_fn)

    def refit(self) -> None:
        """Give the generator the weights of the policy."""
        self.policy.refit()
        self.version += 1
        told = {"version": self.version} if self._tells_versions else {}
        self.generator.update_weights(self.policy.export_weights(), **told)

    def shutdown(self) -> None:
        """End the policy; the generator belongs to whoever made it."""
        self.policy.shutdown()

    def save_checkpoint(self, path: Path, *, with_optimizer: bool = True) -> None:
        """See ``PolicyInterface``."""
        self.policy.save_checkpoint(path, with_optimizer=with_optimizer)

    def load_checkpoint(self, path: Path) -> None:
        """See ``PolicyInterface``; the generator follows."""
        self.policy.load_checkpoint(path)
        self.refit()

    def save_hf(self, folder: Path) -> None:
        """See ``PolicyInterface``."""
        self.policy.save_hf(folder)
