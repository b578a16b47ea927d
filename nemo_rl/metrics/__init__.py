"""Numbers about a run: of rollouts and of speed."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "pass_at_k": "nemo_rl.metrics.rollout",
        "rollout_metrics": "nemo_rl.metrics.rollout",
        "tflops_per_worker": "nemo_rl.metrics.throughput",
        "training_flops": "nemo_rl.metrics.throughput",
    },
)
