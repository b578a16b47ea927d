"""HFBackend: sample with the weights of the DTensor engine, without a copy.

Rows are decoded together (``decoding.py``) over transformers' KV cache, with the same
seeds and the same sampler as the Megatron engine. All layers are gathered once and stay
so until the last response ends: the model must fit in a rank's memory (in that of its
tensor-parallel ranks). For CPUs, small models and debugging.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_rl.backends.generation.base import SamplingParams
from nemo_rl.backends.generation.decoding import decode_batches
from nemo_rl.utils.imports import require


class HFBackend:
    """Samples from the model of a ``DTensorBackend`` in the same process."""

    shares_weights = True

    def setup(self, config: Any) -> None:
        """Share the model of a training engine.

        Args:
            config: a set-up ``DTensorBackend``; ``config.decode``, if set, turns ids
                into text for stop strings.
        """
        self._engine = config

    def update_weights(self, state_dict: Any) -> None:
        """Nothing to move: the weights are the trainer's own."""

    def shutdown(self) -> None:
        """Forget the model."""
        self._engine: Any = None

    @torch.no_grad()
    def generate(
        self, prompts: Mapping[str, Any], sampling_params: SamplingParams
    ) -> dict[str, Tensor]:
        """See ``GenerationBackend.generate``."""
        sharded, decode = self._engine.sharded, self._engine.decode
        with sharded.gathered() as model:
            return decode_batches(
                prompts,
                sampling_params,
                decode,
                lambda rows, columns: _Steps(model, sharded.device, sharded.tp_group),
            )


class _Steps:
    """Forward passes of one batch of rows over transformers' dynamic cache."""

    def __init__(self, model: Any, device: torch.device, tp_group: Any) -> None:
        transformers = require("transformers")
        self.model, self.device, self.tp_group = model, device, tp_group
        self.cache = transformers.DynamicCache(config=model.config)

    def logits(self, ids: Tensor, start: int) -> Tensor:
        """Last-column logits [b, V] fp32."""
        if start:
            return self._forward(ids[:, start:])
        # The samples of one prompt share its prefill.
        distinct, owner = torch.unique(ids, dim=0, return_inverse=True)
        rows = owner.to(self.device)
        logits = self._forward(distinct)
        self.cache.batch_select_indices(rows)
        return logits[rows]

    def _forward(self, ids: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids.to(self.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def agree(self, chosen: Tensor | None, rows: int) -> Tensor:
        """The first tensor-parallel rank's choice: logits may round differently."""
        del rows
        assert chosen is not None  # every rank has logits
        if self.tp_group is not None:
            dist.broadcast(chosen, group=self.tp_group, group_src=0)
        return chosen
