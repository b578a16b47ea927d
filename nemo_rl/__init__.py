"""nemo_rl: reinforcement learning of language models on Megatron, Ray and SLURM.

Importing it loads no torch; every name below is imported on first use.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - a checkout is imported without pip
    raise ImportError(
        "nemo_rl needs Python 3.11, 3.12 or 3.13, and this is Python "
        f"{sys.version_info[0]}.{sys.version_info[1]}: `make setup` makes an "
        "environment with one of them."
    )

from nemo_rl._lazy import lazy_exports  # noqa: E402

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "DPOTrainer": "nemo_rl.algorithms.dpo.trainer",
        "DataModule": "nemo_rl.data.module",
        "DistillationTrainer": "nemo_rl.algorithms.distillation.trainer",
        "GRPOTrainer": "nemo_rl.algorithms.grpo.trainer",
        "RMTrainer": "nemo_rl.algorithms.rm.trainer",
        "SFTTrainer": "nemo_rl.algorithms.sft.trainer",
        "TrainResult": "nemo_rl.trainers.state",
        "train": "nemo_rl.api.train",
    },
)
