"""MegatronInferenceBackend: sample with the training weights, without a copy.

Rows are decoded together (``decoding.py``) over Megatron's static KV cache. The samples
of one prompt share its prefill. Works for TP and PP; every rank of a replica runs the
same loop and learns the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_rl.backends.generation.base import SamplingParams
from nemo_rl.backends.generation.decoding import decode_batches


class MegatronInferenceBackend:
    """Samples from the model of a ``MegatronBackend`` in the same process."""

    shares_weights = True

    def setup(self, config: Any) -> None:
        """Share the model of a training engine.

        Args:
            config: a set-up ``MegatronBackend``; ``config.decode``, if set, turns ids
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
        engine = self._engine
        engine.ddp.eval()
        together = _Together(engine)
        outputs = decode_batches(
            prompts,
            sampling_params,
            getattr(engine, "decode", None),
            lambda rows, columns: _Steps(engine, together, rows, columns),
        )
        together.wait_for_others()
        return outputs


class _Together:
    """Forward passes in step over ranks that share the experts of a layer.

    Each such rank samples its own rows, but every forward pass exchanges tokens among
    them. A rank that has finished goes on with a token that counts for nothing.
    """

    def __init__(self, engine: Any) -> None:
        from megatron.core import parallel_state as ps

        self.engine = engine
        shared = engine.spec.moe is not None
        shared = shared and ps.get_expert_model_parallel_world_size() > 1
        self.group = ps.get_expert_model_parallel_group() if shared else None

    def step(self, working: bool = True) -> bool:
        """Agree on another forward pass; whether anyone needs it."""
        if self.group is None:
            return working
        needed = torch.tensor([int(working)], device=self.engine.platform.device)
        dist.all_reduce(needed, dist.ReduceOp.MAX, group=self.group)
        return bool(needed.item())

    def wait_for_others(self) -> None:
        """Take part in the forward passes of ranks that still have rows to decode."""
        from megatron.core.inference.contexts import StaticInferenceContext

        token = torch.zeros(1, 1, dtype=torch.int64)
        while self.step(working=False):
            context = StaticInferenceContext(1, 1)
            context.enable_prefill_mode()
            _forward(self.engine, context, token, 0)


class _Steps:
    """Forward passes of one batch of rows over Megatron's static cache."""

    def __init__(
        self, engine: Any, together: _Together, rows: int, columns: int
    ) -> None:
        from megatron.core.inference.contexts import StaticInferenceContext

        self.engine, self.together = engine, together
        self.device = engine.platform.device
        self.context = StaticInferenceContext(rows, columns)

    def logits(self, ids: Tensor, start: int) -> Tensor | None:
        """Last-column logits [b, V] fp32 on the last stage, None elsewhere."""
        self.together.step()
        self.context.sequence_len_offset = start
        if start == 0:
            self.context.enable_prefill_mode()
            return self._shared_prefill(ids)
        self.context.enable_decode_mode()
        return _forward(self.engine, self.context, ids[:, start:], start)

    def _shared_prefill(self, ids: Tensor) -> Tensor | None:
        """Read each distinct prompt once and give its cache to all its rows."""
        from megatron.core.inference.contexts import StaticInferenceContext

        distinct, owner = torch.unique(ids, dim=0, return_inverse=True)
        context = self.context
        if len(distinct) == len(owner):
            return _forward(self.engine, context, ids, 0)
        small = StaticInferenceContext(len(distinct), ids.shape[1])
        small.enable_prefill_mode()
        logits = _forward(self.engine, small, distinct, 0)
        rows = owner.to(self.device)
        columns = context.max_sequence_length
        for layer, caches in small.key_value_memory_dict.items():
            context.key_value_memory_dict[layer] = tuple(
                _spread(cache, rows, columns) for cache in caches
            )
        return None if logits is None else logits[rows]

    def agree(self, chosen: Tensor | None, rows: int) -> Tensor:
        """The last stage's choice, on every rank of the replica."""
        from megatron.core import parallel_state as ps

        if chosen is None:
            chosen = torch.empty(2, rows, dtype=torch.float64, device=self.device)
        elif ps.get_tensor_model_parallel_world_size() > 1:
            # Equal logits may round differently; the first rank's choice counts.
            dist.broadcast(
                chosen,
                ps.get_tensor_model_parallel_src_rank(),
                group=ps.get_tensor_model_parallel_group(),
            )
        if ps.get_pipeline_model_parallel_world_size() > 1:
            dist.broadcast(
                chosen,
                ps.get_pipeline_model_parallel_last_rank(),
                group=ps.get_pipeline_model_parallel_group(),
            )
        return chosen


def _forward(engine: Any, context: Any, ids: Tensor, start: int) -> Any:
    """Last-column logits [b, V] fp32 on the last stage, None elsewhere."""
    from megatron.core import parallel_state as ps

    model, ids = engine.model, ids.to(engine.platform.device)
    columns = torch.arange(start, start + ids.shape[1], device=ids.device)
    if not ps.is_pipeline_first_stage():
        hidden = torch.empty(
            ids.shape[1],
            ids.shape[0],
            model.config.hidden_size,
            dtype=model.config.params_dtype,
            device=ids.device,
        )
        dist.recv(hidden, ps.get_pipeline_model_parallel_prev_rank())
        model.set_input_tensor(hidden)
    out = model(
        ids,
        columns.expand_as(ids),
        None,
        inference_context=context,
        runtime_gather_output=True,
    )
    if not ps.is_pipeline_last_stage():
        dist.send(out.contiguous(), ps.get_pipeline_model_parallel_next_rank())
        return None
    return out[:, -1, : engine.spec.vocab_size].float()


def _spread(cache: Tensor, rows: Tensor, columns: int) -> Tensor:
    """[s, n, g, d] cache of distinct prompts to [columns, b, g, d] of their rows."""
    wide = cache.new_zeros(columns, len(rows), *cache.shape[2:])
    wide[: cache.shape[0]] = cache[:, rows]
    return wide
