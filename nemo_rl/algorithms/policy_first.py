"""GRPO, SFT, DPO, RM(policy, config).train(): trainers for a policy that is there.

Adaptors: the loop, the data and the losses are those of the trainers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from nemo_rl.algorithms.dpo.trainer import DPOTrainer
from nemo_rl.algorithms.grpo.trainer import GRPOTrainer
from nemo_rl.algorithms.interfaces import AlgorithmInterface
from nemo_rl.algorithms.rm.trainer import RMTrainer
from nemo_rl.algorithms.sft.trainer import SFTTrainer
from nemo_rl.config.base import BaseConfig
from nemo_rl.models.policy.interfaces import PolicyInterface
from nemo_rl.trainers.base import BaseTrainer
from nemo_rl.trainers.state import TrainResult
from nemo_rl.utils.exceptions import ConfigurationError


class PolicyFirst(AlgorithmInterface):
    """Trains a given policy; its workers are neither started nor ended here.

    Args:
        policy: a ``Policy``, or a ``PolicyInterface`` of one's own.
        config: a recipe of the algorithm; its ``policy.model_name`` names the
            tokenizer, and its ``cluster`` the workers that the policy has.

    Raises:
        ConfigurationError: the recipe is wrong, or the policy cannot be saved and
            ``checkpointing.enabled`` is true.

    Example:
        >>> policy = Policy(cluster, config, tokenizer)  # doctest: +SKIP
        >>> GRPO(policy, config).train()  # doctest: +SKIP
    """

    trainer: ClassVar[type[BaseTrainer]]

    def __init__(
        self, policy: PolicyInterface, config: Mapping[str, Any] | BaseConfig
    ) -> None:
        if not isinstance(policy, PolicyInterface):
            raise ConfigurationError(
                f"{type(self).__name__} trains a PolicyInterface, got "
                f"{type(policy).__name__}. To train a model by name use nemo_rl.train "
                f"or {self.trainer.__name__}."
            )
        if not isinstance(config, self.trainer.config_class):
            config = self.trainer.config_class.from_mapping(config)
        unsaved = type(policy).save_checkpoint is PolicyInterface.save_checkpoint
        if config.checkpointing.enabled and unsaved:
            raise ConfigurationError(
                f"{type(policy).__name__} defines no save_checkpoint: set "
                "checkpointing.enabled to false, or define it."
            )
        super().__init__(policy, config)

    def train(self, **kwargs: Any) -> TrainResult:
        """Train to the end; keywords are those of the trainer's ``fit``."""
        return self.trainer(self.config, policy=self.policy).fit(**kwargs)

    def evaluate(self, **kwargs: Any) -> dict[str, float]:
        """Validation metrics of the policy as it is; keywords as for ``train``."""
        config = self.config.merged(
            {
                # Loading the newest checkpoint would change the policy.
                "checkpointing": {"enabled": False},
                "logger": {
                    "log_dir": f"{self.config.logger.log_dir}/evaluate",
                    "console": "off",
                    "tensorboard_enabled": False,
                    "wandb_enabled": False,
                    "mlflow_enabled": False,
                    "monitor_gpus": False,
                },
            }
        )
        return self.trainer(config, policy=self.policy).evaluate(**kwargs)


class GRPO(PolicyFirst):
    """Group relative policy optimization of a given policy; see ``PolicyFirst``."""

    trainer: ClassVar[type[BaseTrainer]] = GRPOTrainer


class SFT(PolicyFirst):
    """Supervised fine-tuning of a given policy; see ``PolicyFirst``."""

    trainer: ClassVar[type[BaseTrainer]] = SFTTrainer


class RM(PolicyFirst):
    """Reward-model training of a given policy; see ``PolicyFirst``."""

    trainer: ClassVar[type[BaseTrainer]] = RMTrainer


class DPO(PolicyFirst):
    """Preference optimization of a given policy; see ``PolicyFirst``.

    The policy keeps its initial weights as the reference (``Policy`` does unless told
    otherwise).
    """

    trainer: ClassVar[type[BaseTrainer]] = DPOTrainer
