"""Services with state: checkpoints, logs, the console, preemption, monitoring."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "CheckpointInfo": "nemo_rl.infra.checkpoint_folders",
        "CheckpointManager": "nemo_rl.infra.checkpointing",
        "LoggerFacade": "nemo_rl.infra.logging",
        "Monitor": "nemo_rl.infra.monitor",
        "PreemptionFlag": "nemo_rl.infra.preemption",
        "ResourceManager": "nemo_rl.infra.resources",
        "RunSummary": "nemo_rl.infra.console",
        "make_console": "nemo_rl.infra.console",
        "setup_logger": "nemo_rl.infra.logging",
    },
)
