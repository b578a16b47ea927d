"""Training algorithms, one folder each; they do not import one another."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "AlgorithmInterface": "nemo_rl.algorithms.interfaces",
        "DPO": "nemo_rl.algorithms.policy_first",
        "DPOConfig": "nemo_rl.algorithms.dpo.config",
        "DPOLossFn": "nemo_rl.algorithms.dpo.loss",
        "DPOTrainer": "nemo_rl.algorithms.dpo.trainer",
        "DistillationConfig": "nemo_rl.algorithms.distillation.config",
        "DistillationLossFn": "nemo_rl.algorithms.distillation.loss",
        "DistillationTrainer": "nemo_rl.algorithms.distillation.trainer",
        "GRPO": "nemo_rl.algorithms.policy_first",
        "GRPOConfig": "nemo_rl.algorithms.grpo.config",
        "GRPOLossFn": "nemo_rl.algorithms.grpo.loss",
        "GRPOTrainer": "nemo_rl.algorithms.grpo.trainer",
        "LossFunctionInterface": "nemo_rl.algorithms.interfaces",
        "NLLLossFn": "nemo_rl.algorithms.sft.loss",
        "RM": "nemo_rl.algorithms.policy_first",
        "RMConfig": "nemo_rl.algorithms.rm.config",
        "RMTrainer": "nemo_rl.algorithms.rm.trainer",
        "SFT": "nemo_rl.algorithms.policy_first",
        "SFTConfig": "nemo_rl.algorithms.sft.config",
        "SFTTrainer": "nemo_rl.algorithms.sft.trainer",
    },
)
