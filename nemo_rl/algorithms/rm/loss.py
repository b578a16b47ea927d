"""The loss of a reward model: the better answer is to score higher.

Knows scores; no model, no data.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from nemo_rl.algorithms.interfaces import LossFunctionInterface
from nemo_rl.algorithms.rm.config import RMConfig
from nemo_rl.backends.training.base import Batch, ModelOutput
from nemo_rl.metrics.pairs import pair_shares
from nemo_rl.utils.exceptions import ConfigurationError


class BradleyTerryLossFn(LossFunctionInterface):
    """Negative log-likelihood of the preferences under Bradley and Terry (1952).

    Per pair, with the score s of an answer: ``-log sigmoid(s_chosen - s_rejected)``
    (Ouyang et al. 2022, arXiv:2203.02155, equation 1), plus
    ``center_rewards_coefficient * (s_chosen + s_rejected)^2``, which fixes the constant
    that the first term leaves open (Eisenstein et al. 2023, arXiv:2312.09244, section
    3.1). Means over the pairs of the global batch.

    Rows 2 i and 2 i + 1 of a batch are the chosen and the rejected answer of a pair.

    Args:
        config: the rm section; its defaults when None.
    """

    rows_per_sample = 2

    def __init__(self, config: RMConfig | None = None) -> None:
        self.config = config or RMConfig()

    def compute_loss(
        self, batch: Batch, model_output: ModelOutput
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``LossFunctionInterface``; uses ``scores`` [b].

        Raises:
            ConfigurationError: the model is no reward model.
        """
        if model_output.scores is None:
            raise ConfigurationError(
                "the model gives no scores: set policy.reward_model_cfg.enabled to true"
            )
        values = pair_values(model_output.scores, self.config)
        return pair_shares(values, batch)


def pair_values(scores: Tensor, config: RMConfig) -> dict[str, Tensor]:
    """Loss and metrics of each pair.

    Args:
        scores: [2 P] fp32.
        config: the rm section.

    Returns:
        [P] fp32 each: ``loss``, ``accuracy``, ``rewards_chosen``,
        ``rewards_rejected``, ``rewards_margin``.
    """
    chosen, rejected = scores.view(-1, 2).unbind(-1)
    margin = chosen - rejected
    loss = -logsigmoid(margin)
    if config.center_rewards_coefficient > 0:
        centre = (chosen + rejected).square()
        loss = loss + config.center_rewards_coefficient * centre
    return {
        "loss": loss,
        "accuracy": (margin > 0).float(),
        "rewards_chosen": chosen,
        "rewards_rejected": rejected,
        "rewards_margin": margin,
    }
