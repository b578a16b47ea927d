"""Submit a recipe to SLURM, turn an allocation into a Ray cluster, run the driver."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "submit": "nemo_rl.launch.submission",
    },
)
