"""DataModule: rows of any source as batches of prompts, in an order that resumes.

Knows no policy and no reward. The order of an epoch is a permutation of its own seed,
independent of every other random generator of the program.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from nemo_rl.config.data import DataConfig
from nemo_rl.data.llm_message_utils import render_prompt
from nemo_rl.data.rows import RowReader
from nemo_rl.data.sources import describe_row, fingerprint, open_data
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.utils.exceptions import CheckpointError, ConfigurationError, DataError
from nemo_rl.utils.seeding import derive_seed

logger = logging.getLogger(__name__)

CHECKED_ROWS = 4096
"""Rows checked before training starts; later ones when their turn comes."""


class DataModule:
    """Training and validation prompts.

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
        max_prompt_length: Longest prompt in tokens; ``config.max_input_seq_length``
            when None.
        val_dataset: As ``dataset``, for validation; None for
            ``config.val_dataset_name``, and nothing where that is None too.
        search_dir: Folder of the recipe, for relative files.

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
        max_prompt_length: int | None = None,
        val_dataset: Any = None,
        search_dir: Path | str | None = None,
    ) -> None:
        """Load the rows and check the first ones."""
        if not isinstance(config, DataConfig):
            config = DataConfig.from_mapping(config or {})
        self.config = config
        self.seed = seed if config.seed is None else config.seed
        self._tokenizer = tokenizer
        self._limit = max_prompt_length or config.max_input_seq_length
        self._reader = RowReader(config, search_dir=search_dir)
        if isinstance(dataset, DataModule):
            val_dataset = dataset._val_rows if val_dataset is None else val_dataset
            dataset = dataset._rows
        self._rows, self._val_rows = open_data(
            config, dataset, val_dataset, seed=self.seed, search_dir=search_dir
        )
        self._epoch = 0
        self._position = 0
        self._fingerprint: str | None = None
        self._prompts: dict[tuple[bool, int], dict[str, Any]] = {}
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
                f"A step takes {batch_size} prompts and the dataset has only "
                f"{len(self._rows)} rows. Lower grpo.num_prompts_per_step "
                "(batch_size), or add rows."
            )
        return steps

    def batches(self, batch_size: int) -> Iterator[BatchedDataDict]:
        """Yield prompt batches without end, from where the state stands.

        Rows that do not fill a last batch of an epoch are left out of that epoch; a
        new order brings them into others.

        Args:
            batch_size: P, prompts per batch.

        Yields:
            A ``PromptBatch`` (data/interfaces.py).

        Raises:
            DataError: Fewer rows than one batch, or a row that cannot be used.
        """
        self.steps_per_epoch(batch_size)
        order_of: int | None = None
        order: list[int] = []
        while True:
            if self._position + batch_size > len(self._rows):
                self._epoch, self._position = self._epoch + 1, 0
            if order_of != self._epoch:
                order, order_of = self._order(self._epoch), self._epoch
            chosen = order[self._position : self._position + batch_size]
            batch = self._batch(chosen, validation=False)
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
                self._prompts[validation, idx] = self._prompt(idx, validation)
        self._warn_of_overlap()

    def _warn_of_overlap(self) -> None:
        """A validation on training prompts measures memory: say so."""
        texts: dict[bool, set[str]] = {False: set(), True: set()}
        for (validation, _), prompt in self._prompts.items():
            texts[validation].add(prompt["prompt"])
        shared = texts[False] & texts[True]
        if shared:
            message = "%d of %d validation prompts are training prompts too."
            logger.warning(message, len(shared), len(texts[True]))

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self._rows)))
        if self.config.shuffle:
            random.Random(derive_seed(self.seed, "data order", epoch)).shuffle(order)
        return order

    def _prompt(self, idx: int, validation: bool) -> dict[str, Any]:
        """Read and render one row."""
        if (validation, idx) in self._prompts:
            return self._prompts[validation, idx]
        rows = self._val_rows if validation else self._rows
        where = describe_row(rows, idx)
        read = self._reader.read(rows[idx], where)
        if self._tokenizer is None:
            raise ConfigurationError(
                "This DataModule has no tokenizer: give it one, or pass the module to "
                "a trainer's fit()."
            )
        text, ids = render_prompt(read.messages, self._tokenizer)
        if not ids:
            raise DataError(f"{where}: the prompt has no tokens.")
        if self._limit is not None and len(ids) > self._limit:
            raise DataError(
                f"{where}: the prompt has {len(ids)} tokens, the longest allowed is "
                f"{self._limit}. Remove the row, or raise "
                "policy.max_total_sequence_length (which also holds the response) or "
                "data.max_input_seq_length."
            )
        return {
            "ids": ids,
            "idx": idx,
            "prompt": text,
            "messages": read.messages,
            "answer": read.answer,
            "task_name": read.task_name,
            "row": read.row,
        }

    def _batch(self, chosen: list[int], *, validation: bool) -> BatchedDataDict:
        prompts = [self._prompt(idx, validation) for idx in chosen]
        lengths = [len(prompt["ids"]) for prompt in prompts]
        pad = self._tokenizer.pad_token_id
        pad = self._tokenizer.eos_token_id if pad is None else pad
        input_ids = torch.full((len(prompts), max(lengths)), pad or 0)
        for row, prompt in enumerate(prompts):
            input_ids[row, : lengths[row]] = torch.tensor(prompt["ids"])
        columns = {
            key: [prompt[key] for prompt in prompts]
            for key in ("prompt", "messages", "answer", "task_name", "row")
        }
        return BatchedDataDict(
            {
                "input_ids": input_ids,
                "input_lengths": torch.tensor(lengths),
                "idx": torch.tensor(chosen),
                **columns,
            }
        )
