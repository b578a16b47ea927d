"""nemo_rl: reinforcement learning of language models on Megatron, Ray and SLURM.

Importing it loads no torch; every name below is imported on first use.
"""

from nemo_rl._lazy import lazy_exports

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
