"""Numbers about a run: reduced over ranks, of rollouts, of training, of speed."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "ModelShape": "nemo_rl.metrics.throughput",
        "logprob_metrics": "nemo_rl.metrics.training",
        "pass_at_k": "nemo_rl.metrics.rollout",
        "reduce_metrics": "nemo_rl.metrics.reduce",
        "rollout_metrics": "nemo_rl.metrics.rollout",
        "throughput_metrics": "nemo_rl.metrics.throughput",
    },
)
