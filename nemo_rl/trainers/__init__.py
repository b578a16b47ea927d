"""The loop that every algorithm shares, its state, and hooks into it."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BaseTrainer": "nemo_rl.trainers.base",
        "Callback": "nemo_rl.trainers.callbacks",
        "CallbackList": "nemo_rl.trainers.callbacks",
        "CheckpointCallback": "nemo_rl.trainers.builtin_callbacks",
        "EarlyStoppingCallback": "nemo_rl.trainers.builtin_callbacks",
        "LambdaCallback": "nemo_rl.trainers.builtin_callbacks",
        "LoggingCallback": "nemo_rl.trainers.builtin_callbacks",
        "ProgressCallback": "nemo_rl.trainers.builtin_callbacks",
        "TrainResult": "nemo_rl.trainers.state",
        "TrainState": "nemo_rl.trainers.state",
        "ValidationRunner": "nemo_rl.trainers.validation",
    },
)
