"""Configuration: pydantic and arithmetic, no torch. Importable on a login node."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BaseConfig": "nemo_rl.config.base",
        "CheckpointingConfig": "nemo_rl.config.services",
        "ClusterConfig": "nemo_rl.config.cluster",
        "DataConfig": "nemo_rl.config.data",
        "EnvConfig": "nemo_rl.config.environment",
        "GenerationConfig": "nemo_rl.config.generation",
        "LoggerConfig": "nemo_rl.config.services",
        "LoopConfig": "nemo_rl.config.loop",
        "MasterConfig": "nemo_rl.config.master",
        "MegatronConfig": "nemo_rl.config.megatron",
        "OpenMasterConfig": "nemo_rl.config.master",
        "OptimizerConfig": "nemo_rl.config.optimizer",
        "ParallelDims": "nemo_rl.config.parallel",
        "PolicyConfig": "nemo_rl.config.policy",
        "apply_overrides": "nemo_rl.config.loading",
        "learning_rate_at": "nemo_rl.config.schedule",
        "load_recipe_mapping": "nemo_rl.config.loading",
        "load_yaml": "nemo_rl.config.loading",
        "validate_master": "nemo_rl.config.validation",
        "validate_model_shape": "nemo_rl.config.validation",
    },
)
