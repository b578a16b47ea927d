"""DataModule: rows of any source as batches, in an order that resumes.

Knows no policy, no reward, and not what a row holds: its encoder does. The order of an
epoch is a permutation of its own seed, independent of every other random generator.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nemo_rl.config.data import DataConfig
from nemo_rl.data.encoding import Encoder, EncoderContext
from nemo_rl.data.prompts import PromptEncoder
from nemo_rl.data.sources import describe_row, fingerprint, open_data
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.utils.exceptions import CheckpointError, DataError
from nemo_rl.utils.seeding import derive_seed

logger = logging.getLogger(__name__)

CHECKED_ROWS = 4096
"""Rows checked before training starts; later ones when their turn comes."""


class DataModule:
    """Training and validation rows.

    Example:
        >>> data = DataModule([{"prompt": "5 + 2 =", "answer": "7"}], tokenizer)
        >>> next(data.batches(1))["input_lengths"]
        tensor([24])

    Args:
        dataset: A registered name, file, folder or hub name; a list of rows or of
            texts; a ``datasets.Dataset``; anything with ``len()`` and ``[index]``;
            None for ``config.dataset_name``.
        tokenizer: A ``transformers`` tokenizer; None where the module is only handed
            on to ``fit()``, which brings its own.
        config: The data section; its defaults when None.
        seed: Decides the order, unless ``config.seed`` does.
        max_length: Longest row in tokens; ``config.max_input_seq_length`` when None.
        val_dataset: As ``dataset``, for validation; None for
            ``config.val_dataset_name``, and nothing where that is None too.
        search_dir: Folder of the recipe, for relative files.
        encoder: Reads rows and makes batches: of prompts, conversations or
            preferences.

    Raises:
        ConfigurationError: No dataset is named, or the name is unknown.
        DataError: It is empty, or a row cannot be used.
    """

    def __init__(
        self,
        dataset: Any = None,
        tokenizer: Any = None,
        config: DataConfig | Mapping[str, Any] | None = None,
        *,
        seed: int = 42,
        max_length: int | None = None,
        val_dataset: Any = None,
        search_dir: Path | str | None = None,
        encoder: type[Encoder] = PromptEncoder,
    ) -> None:
        """Load the rows and check the first ones."""
        if not isinstance(config, DataConfig):
            config = DataConfig.from_mapping(config or {})
        self.config = config
        self.seed = seed if config.seed is None else config.seed
        self._tokenizer = tokenizer
        limit = max_length or config.max_input_seq_length
        context = EncoderContext(config, tokenizer, limit, search_dir)
        self._encoder = encoder(context)
        if isinstance(dataset, DataModule):
            val_dataset = dataset._val_rows if val_dataset is None else val_dataset
            dataset = dataset._rows
        self._rows, self._val_rows = open_data(
            config, dataset, val_dataset, seed=self.seed, search_dir=search_dir
        )
        self._epoch = 0
        self._position = 0
        self._fingerprint: str | None = None
        self._items: dict[tuple[bool, int], dict[str, Any]] = {}
        self._check()

    @classmethod
    def create(cls, dataset: Any, tokenizer: Any, config: Any, **kwargs: Any):
        """Return the module a trainer uses: the user's own instance of a subclass.

        A plain DataModule, which may have been made without a tokenizer, gives its
        rows to a new one.
        """
        if isinstance(dataset, DataModule) and type(dataset) is not DataModule:
            return dataset
        return cls(dataset, tokenizer, config, **kwargs)

    def __len__(self) -> int:
        """Return the number of training rows."""
        return len(self._rows)

    @property
    def has_validation(self) -> bool:
        """Whether there is anything to validate on."""
        return self._val_rows is not None

    @property
    def default_environment(self) -> Any:
        """The environment the dataset itself names, or None."""
        return getattr(self._rows, "default_environment", None)

    @property
    def epoch(self) -> int:
        """Epoch of the last batch, from 0."""
        return self._epoch

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return how many full batches an epoch has.

        Raises:
            DataError: There are fewer rows than one batch takes.
        """
        steps = len(self._rows) // batch_size
        if steps == 0:
            raise DataError(
                f"A step takes {batch_size} rows and the dataset has only "
                f"{len(self._rows)} rows. Lower the step's size (batch_size, or "
                "grpo.num_prompts_per_step), or add rows."
            )
        return steps

    def batches(self, batch_size: int) -> Iterator[BatchedDataDict]:
        """Yield batches without end, from where the state stands.

        Rows that do not fill a last batch of an epoch are left out of that epoch; a
        new order brings them into others.

        Args:
            batch_size: P, rows of the data set per batch.

        Yields:
            A ``PromptBatch``, or what the encoder makes (data/interfaces.py).

        Raises:
            DataError: Fewer rows than one batch, or a row that cannot be used.
        """
        self.steps_per_epoch(batch_size)
        order_of: int | None = None
        order: Any = ()
        while True:
            if self._position + batch_size > len(self._rows):
                self._epoch, self._position = self._epoch + 1, 0
            if order_of != self._epoch:
                order, order_of = self._order(self._epoch), self._epoch
            chosen = order[self._position : self._position + batch_size]
            batch = self._batch([int(idx) for idx in chosen], validation=False)
            self._position += batch_size
            yield batch

    def validation_batches(
        self, num_samples: int | None, batch_size: int
    ) -> Iterator[BatchedDataDict]:
        """Yield the first validation rows, the same in every call.

        Args:
            num_samples: At most this many rows; all when None.
            batch_size: P; the last batch may be smaller.
        """
        count = 0 if self._val_rows is None else len(self._val_rows)
        count = count if num_samples is None else min(count, num_samples)
        for start in range(0, count, batch_size):
            chosen = list(range(start, min(start + batch_size, count)))
            yield self._batch(chosen, validation=True)

    def rows(self, indices: Sequence[int]) -> BatchedDataDict:
        """Return training rows by their index in the data set, as a batch.

        Raises:
            DataError: A row cannot be used.
        """
        return self._batch([int(idx) for idx in indices], validation=False)

    def state_dict(self) -> dict[str, Any]:
        """Return where the next batch begins, as plain JSON values."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "seed": self.seed,
            "shuffle": self.config.shuffle,
            "num_rows": len(self._rows),
            "fingerprint": self.fingerprint(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the batch that ``state_dict`` was taken at.

        Raises:
            CheckpointError: The state belongs to other rows or to another order.
        """
        mine = self.state_dict()
        for key, what in (
            ("num_rows", "number of rows"),
            ("fingerprint", "content"),
            ("seed", "seed"),
            ("shuffle", "shuffle setting"),
        ):
            if state.get(key) != mine[key]:
                raise CheckpointError(
                    f"The checkpoint was written with another dataset: its {what} was "
                    f"{state.get(key)!r} and is now {mine[key]!r}. Restore the data, "
                    "or start in another checkpointing.checkpoint_dir (or with "
                    "checkpointing.resume=false)."
                )
        self._epoch, self._position = int(state["epoch"]), int(state["position"])

    def fingerprint(self) -> str:
        """Return a hash of the training rows; see ``sources.fingerprint``."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self._rows)
        return self._fingerprint

    def _check(self) -> None:
        if self._tokenizer is None:
            return
        for validation, rows in ((False, self._rows), (True, self._val_rows)):
            for idx in range(min(CHECKED_ROWS, len(rows) if rows is not None else 0)):
                self._items[validation, idx] = self._item(idx, validation)
        self._warn_of_overlap()

    def _warn_of_overlap(self) -> None:
        """A validation on training rows measures memory: say so."""
        texts: dict[bool, set[str]] = {False: set(), True: set()}
        for (validation, _), item in self._items.items():
            texts[validation].add(item["text"])
        shared = texts[False] & texts[True]
        if shared:
            message = "%d of %d validation rows are training rows too."
            logger.warning(message, len(shared), len(texts[True]))

    def _order(self, epoch: int) -> Any:
        if not self.config.shuffle:
            return range(len(self._rows))
        generator = np.random.default_rng(derive_seed(self.seed, "data order", epoch))
        return generator.permutation(len(self._rows))

    def _item(self, idx: int, validation: bool) -> dict[str, Any]:
        """Read and encode one row."""
        if (validation, idx) in self._items:
            return self._items[validation, idx]
        rows = self._val_rows if validation else self._rows
        return self._encoder.encode(rows[idx], describe_row(rows, idx), idx)

    def _batch(self, chosen: list[int], *, validation: bool) -> BatchedDataDict:
        return self._encoder.collate([self._item(idx, validation) for idx in chosen])
