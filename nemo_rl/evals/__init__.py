"""Evaluation: a model's answers to a data set, scored, with intervals."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Estimate": "nemo_rl.evals.statistics",
        "EvalConfig": "nemo_rl.evals.config",
        "EvalMasterConfig": "nemo_rl.evals.config",
        "EvalResult": "nemo_rl.evals.report",
        "evaluate": "nemo_rl.evals.evaluation",
    },
)
