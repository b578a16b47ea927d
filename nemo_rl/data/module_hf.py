"""HFDataModule: the splits of one dataset of the hub as training and validation rows.

Knows no field of a row and no algorithm; what it opens is what ``data.dataset_name``
opens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_rl.data.datasets.registry import load_dataset
from nemo_rl.data.module import DataModule


class HFDataModule(DataModule):
    """A DataModule of a dataset's own splits.

    Example:
        >>> data = HFDataModule(
        ...     "openai/gsm8k", tokenizer, split="train", val_split="test"
        ... )  # doctest: +SKIP
        >>> trainer.fit(data)  # doctest: +SKIP

    Args:
        name: A name on the hub, or of a published dataset; or a folder written by
            ``save_to_disk`` or laid out as on the hub.
        tokenizer: A ``transformers`` tokenizer: the module is used as it is.
        split: What is trained on.
        val_split: What is validated on; None: ``config.split_validation_size`` of the
            training rows, or nothing.
        dataset_kwargs: Further arguments of the dataset, such as ``path``, ``shape``
            or the subset's ``name``.
        search_dir: Folder that a relative folder is also looked for in.
        **kwargs: Arguments of ``DataModule``, such as ``config`` and ``seed``.

    Raises:
        ConfigurationError: No such dataset, or the hub cannot be reached.
        DataError: It has no such split, or a row cannot be used.
    """

    def __init__(
        self,
        name: str | Path,
        tokenizer: Any,
        *,
        split: str = "train",
        val_split: str | None = None,
        dataset_kwargs: dict[str, Any] | None = None,
        search_dir: Path | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Open the splits and check their first rows."""

        def opened(wanted: str) -> Any:
            return load_dataset(
                str(name),
                search_dir=search_dir,
                split=wanted,
                **(dataset_kwargs or {}),
            )

        super().__init__(
            opened(split),
            tokenizer,
            val_dataset=None if val_split is None else opened(val_split),
            search_dir=search_dir,
            **kwargs,
        )
