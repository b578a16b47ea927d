"""Pure helpers without state of their own; services with state are in `infra`."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "CheckpointError": "nemo_rl.utils.exceptions",
        "ConfigurationError": "nemo_rl.utils.exceptions",
        "DataError": "nemo_rl.utils.exceptions",
        "LaunchError": "nemo_rl.utils.exceptions",
        "NemoRLError": "nemo_rl.utils.exceptions",
        "ResourceError": "nemo_rl.utils.exceptions",
        "RewardError": "nemo_rl.utils.exceptions",
        "Timer": "nemo_rl.utils.timer",
        "TrainingError": "nemo_rl.utils.exceptions",
        "WorkerError": "nemo_rl.utils.exceptions",
        "derive_seed": "nemo_rl.utils.seeding",
        "did_you_mean": "nemo_rl.utils.suggest",
        "import_object": "nemo_rl.utils.imports",
        "require": "nemo_rl.utils.imports",
        "set_seed": "nemo_rl.utils.seeding",
    },
)
