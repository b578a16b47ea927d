"""MegatronInferenceBackend: sample with the training weights, without a copy.

Rows are decoded together over Megatron's static KV cache. A shorter prompt is fed
token by token while longer ones are still being read, so every row occupies columns
0..t without a gap: padding can neither shift positions nor be attended to. The samples
of one prompt share its prefill. Works for TP and PP; every rank of a replica runs the
same loop and learns the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_rl.backends.generation.base import SamplingParams
from nemo_rl.backends.generation.sampling import sample, uniforms


class MegatronInferenceBackend:
    """Samples from the model of a ``MegatronBackend`` in the same process."""

    def setup(self, config: Any) -> None:
        """Share the model of a training engine.

        Args:
            config: a set-up ``MegatronBackend``; ``config.decode``, if set, turns ids
                into text for stop strings.
        """
        self._engine = config
        self._decode: Callable[[list[int]], str] | None = getattr(
            config, "decode", None
        )

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
        lengths = prompts["input_lengths"]
        order = torch.argsort(lengths, stable=True)
        size = sampling_params.batch_size or max(len(order), 1)
        outputs = _empty_outputs(prompts, sampling_params)
        self._engine.ddp.eval()
        together = _Together(self._engine)
        for rows in order.split(size) if len(order) else ():
            loop = _DecodeLoop(self._engine, sampling_params, self._decode, together)
            result = loop.run(
                prompts["input_ids"][rows],
                lengths[rows],
                prompts["sampling_seed"][rows],
            )
            for key, value in result.items():
                if value.dim() == 2:
                    outputs[key][rows, : value.shape[1]] = value
                else:
                    outputs[key][rows] = value
        together.wait_for_others()
        longest = int(outputs["unpadded_sequence_lengths"].max()) if len(order) else 0
        for key in ("output_ids", "logprobs"):
            outputs[key] = outputs[key][:, :longest]
        return outputs


def _empty_outputs(
    prompts: Mapping[str, Any], params: SamplingParams
) -> dict[str, Tensor]:
    rows, columns = prompts["input_ids"].shape
    shape = (rows, columns + params.max_new_tokens)
    return {
        "output_ids": torch.zeros(shape, dtype=torch.int64),
        "logprobs": torch.zeros(shape, dtype=torch.float32),
        "unpadded_sequence_lengths": torch.zeros(rows, dtype=torch.int64),
        "generation_lengths": torch.zeros(rows, dtype=torch.int64),
        "truncated": torch.zeros(rows, dtype=torch.bool),
    }


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


class _DecodeLoop:
    """Decode one batch of rows to the end."""

    def __init__(
        self,
        engine: Any,
        params: SamplingParams,
        decode: Callable[[list[int]], str] | None,
        together: _Together,
    ) -> None:
        self.engine, self.params, self.decode = engine, params, decode
        self.together = together
        self.device = engine.platform.device
        self.stops = torch.tensor(params.stop_token_ids, dtype=torch.int64)

    def run(self, ids: Tensor, lengths: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """Sample for prompts [b, S] of the given lengths [b]; all on the CPU."""
        from megatron.core.inference.contexts import StaticInferenceContext

        params = self.params
        limit = (lengths + params.max_new_tokens).clamp(max=params.max_total_length)
        columns = int(limit.max())
        self.ids = torch.zeros(len(ids), columns, dtype=torch.int64)
        width = min(ids.shape[1], columns)
        self.ids[:, :width] = ids[:, :width]
        self.logprobs = torch.zeros(len(ids), columns)
        self.ends = limit.clone()
        self.prompt_ends = lengths
        self.done = limit <= lengths
        self.stopped = torch.zeros(len(ids), dtype=torch.bool)
        noise = uniforms(seeds, params.max_new_tokens)

        start, end = 0, int(lengths.min())
        context = StaticInferenceContext(len(ids), columns)
        while end < columns and not bool(self.done.all()):
            logits = self._logits(context, start, end, prefill=start == 0)
            turn = (end - lengths).clamp(min=0, max=params.max_new_tokens - 1)
            tokens, logprobs = self._next(logits, noise.gather(1, turn[:, None])[:, 0])
            self._append(end, tokens, logprobs, lengths <= end)
            context.sequence_len_offset = end
            start, end = end, end + 1
        self._clear_after_ends()
        return {
            "output_ids": self.ids,
            "logprobs": self.logprobs,
            "unpadded_sequence_lengths": self.ends,
            "generation_lengths": self.ends - lengths,
            "truncated": ~self.stopped,
        }

    def _append(
        self, column: int, tokens: Tensor, logprobs: Tensor, past_prompt: Tensor
    ) -> None:
        """Write the new column where a row is past its prompt and not done."""
        active = past_prompt & ~self.done
        for values, new in ((self.ids, tokens), (self.logprobs, logprobs)):
            values[:, column] = torch.where(active, new, values[:, column])
        hit = active & torch.isin(tokens, self.stops)
        if self.params.stop_strings and self.decode is not None:
            hit |= active & self._ends_with_stop_string(column, active)
        self.stopped |= hit
        self.ends[hit] = column + 1
        self.done |= hit | (self.ends <= column + 1)

    def _ends_with_stop_string(self, column: int, active: Tensor) -> Tensor:
        hits = torch.zeros_like(active)
        # A token adds at least one byte, so the tail holds any new match.
        tail = max(len(s.encode()) for s in self.params.stop_strings) + 1
        for row in active.nonzero()[:, 0].tolist():
            first = max(int(self.prompt_ends[row]), column + 1 - tail)
            tokens = self.ids[row, first : column + 1].tolist()
            text = self.decode(tokens)  # pyrefly: ignore[not-callable]
            hits[row] = any(stop in text for stop in self.params.stop_strings)
        return hits

    def _clear_after_ends(self) -> None:
        beyond = torch.arange(self.ids.shape[1])[None] >= self.ends[:, None]
        self.ids[beyond] = 0
        self.logprobs[beyond] = 0.0

    def _logits(self, context: Any, start: int, end: int, *, prefill: bool) -> Any:
        """Last-column logits [b, V] fp32 on the last stage, None elsewhere."""
        self.together.step()
        if prefill:
            context.enable_prefill_mode()
            return self._shared_prefill(context, end)
        context.enable_decode_mode()
        return _forward(self.engine, context, self.ids[:, start:end], start)

    def _shared_prefill(self, context: Any, end: int) -> Any:
        """Read each distinct prompt once and give its cache to all its rows."""
        from megatron.core.inference.contexts import StaticInferenceContext

        distinct, owner = torch.unique(self.ids[:, :end], dim=0, return_inverse=True)
        if len(distinct) == len(owner):
            return _forward(self.engine, context, self.ids[:, :end], 0)
        small = StaticInferenceContext(len(distinct), end)
        small.enable_prefill_mode()
        logits = _forward(self.engine, small, distinct, 0)
        rows = owner.to(self.device)
        columns = context.max_sequence_length
        for layer, caches in small.key_value_memory_dict.items():
            context.key_value_memory_dict[layer] = tuple(
                _spread(cache, rows, columns) for cache in caches
            )
        return None if logits is None else logits[rows]

    def _next(self, logits: Any, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Sample on the last stage; every rank of the replica learns the result."""
        from megatron.core import parallel_state as ps

        rows = len(uniform)
        # Token ids are exact in float64, so one message carries both.
        chosen = torch.empty(2, rows, dtype=torch.float64, device=self.device)
        if logits is not None:
            tokens, logprobs = sample(logits, uniform, self.params)
            chosen = torch.stack([tokens.double(), logprobs.double()])
            if ps.get_tensor_model_parallel_world_size() > 1:
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
        chosen = chosen.cpu()
        return chosen[0].long(), chosen[1].float()


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
