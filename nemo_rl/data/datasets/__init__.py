"""Built-in datasets by name: rows only, no tokens and no batches."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "DatasetInterface": "nemo_rl.data.interfaces",
        "load_dataset": "nemo_rl.data.datasets.registry",
        "register_dataset": "nemo_rl.data.datasets.registry",
    },
)
