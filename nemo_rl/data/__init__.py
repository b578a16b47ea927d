"""Data: from rows of a dataset to batches of prompts."""

from nemo_rl._lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "DataModule": "nemo_rl.data.module",
        "DatasetInterface": "nemo_rl.data.interfaces",
        "HFDataModule": "nemo_rl.data.module_hf",
        "load_tokenizer": "nemo_rl.data.tokenizer",
    },
)
