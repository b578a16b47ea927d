"""VllmGeneration: engines of vLLM on the places of a cluster, as the driver sees them.

Knows where engines run and which has which request; weights come from outside (a
``Refit``, or ``update_weights``).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from nemo_rl.backends.generation.base import GenerationRequest, GenerationResult
from nemo_rl.backends.generation.rows import output_columns, row_requests
from nemo_rl.backends.generation.vllm.requests import check_request, duplicates
from nemo_rl.backends.generation.vllm.settings import VllmSettings, process_variables
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.distributed.interfaces import WorkerOptions
from nemo_rl.distributed.virtual_cluster import RayVirtualCluster
from nemo_rl.distributed.worker_groups import RayWorkerGroup
from nemo_rl.models.generation.interfaces import GenerationInterface
from nemo_rl.models.generation.prompts import checked_prompts
from nemo_rl.models.generation.replica import Replica
from nemo_rl.models.generation.vllm_config import VllmConfig, settings_of
from nemo_rl.models.generation.vllm_worker import EngineWorker, VllmGenerationWorker
from nemo_rl.utils.exceptions import ConfigurationError, TrainingError
from nemo_rl.utils.seeding import derive_seed

__all__ = ["VllmConfig", "VllmGeneration", "VllmGenerationWorker"]

_CALLS_AT_ONCE = 16
_POLL_S = 5.0


class VllmGeneration(GenerationInterface):
    """Samples with one vLLM engine per ``tensor x pipeline`` places of a cluster.

    Args:
        cluster: places of the engines; with ``shares`` others train on them.
        config: fields of ``VllmConfig``, or the engines' settings.
        tokenizer: supplies the stop token; without one, generation_config.json does.
        shares: training workers hold the places: take their devices, not Ray's.

    Raises:
        ConfigurationError: no such model, an option that is unknown or cannot be.

    Example:
        >>> generator = VllmGeneration(  # doctest: +SKIP
        ...     RayVirtualCluster([4]), VllmConfig(model_name="Qwen/Qwen2.5-1.5B")
        ... )
        >>> output = generator.generate(prompts, greedy=False)  # doctest: +SKIP
    """

    def __init__(
        self,
        cluster: RayVirtualCluster,
        config: Mapping[str, Any] | VllmConfig | VllmSettings,
        tokenizer: Any = None,
        *,
        shares: bool = False,
    ) -> None:
        if not isinstance(cluster, RayVirtualCluster):
            raise ConfigurationError(
                f"VllmGeneration runs its engines in processes of Ray, not in a "
                f"{type(cluster).__name__}: give it a RayVirtualCluster."
            )
        self.settings = settings_of(config, tokenizer, use_gpus=cluster.use_gpus)
        self.revive: Callable[[Replica], None] | None = None
        self._news = threading.Condition()
        self._names = itertools.count()
        self._updated = False
        self._holder: dict[str, Replica] = {}
        slots = _slots(cluster, self.settings)
        cluster.placement_group()  # reserved once, before the engines start together

        def start(number: int) -> Replica:
            bundle, devices = slots[number]
            settings = replace(self.settings, seed=self.settings.seed + number)
            begin = partial(
                _start_group,
                cluster,
                settings,
                bundle=bundle,
                devices=devices if shares else None,
                shares=shares,
            )
            return Replica(number, begin, revived=self._revived, news=self._news)

        with ThreadPoolExecutor(len(slots)) as pool:
            self.replicas = list(pool.map(start, range(len(slots))))

    def generate(
        self, data: BatchedDataDict, greedy: bool, *, n: int = 1
    ) -> BatchedDataDict:
        """Sample responses; see ``GenerationInterface.generate``.

        Args:
            data: ``input_ids`` [B, S] right-padded with ``input_lengths`` [B] or
                ``attention_mask``; ``sampling_seed`` [B] and ``stop_strings`` if any.
            greedy: take the likeliest token.
            n: responses per row, in a row of the output each, from seeds of their own.

        Returns:
            ``output_ids``, ``generation_lengths``, ``unpadded_sequence_lengths``,
            ``logprobs``, ``truncated``, and ``token_versions``: the weights that
            sampled each token.
        """
        prompts = checked_prompts(data, self.settings.max_model_len)
        if "stop_strings" in data:
            prompts["stop_strings"] = data["stop_strings"]
        if n > 1:
            seeds = prompts["sampling_seed"].tolist()
            prompts = prompts.repeat_interleave(n)
            own = [_copy_seed(seed, copy) for seed in seeds for copy in range(n)]
            prompts["sampling_seed"] = torch.tensor(own)
        requests = row_requests(
            prompts,
            max_new_tokens=self.settings.max_new_tokens,
            max_total_length=self.settings.max_model_len,
            greedy=greedy,
            prefix=f"{next(self._names)}/",
        )
        self.submit(requests)
        results = self._all_of([request.id for request in requests])
        output = BatchedDataDict(output_columns(requests, results))
        if not bool(torch.isfinite(output["logprobs"]).all()):
            raise TrainingError(
                "the generator returned log-probs that are not finite; its weights or "
                "its sampling options are broken"
            )
        return output

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """See ``GenerationStream``. Responses to one prompt go to one engine.

        Raises:
            ConfigurationError: a request cannot be answered; none was started.
        """
        duplicates(requests, self._holder)
        for request in requests:
            check_request(request, self.settings)
        shares: dict[int, list[GenerationRequest]] = {}
        loads = [replica.load for replica in self.replicas]
        fair = -(-(sum(loads) + len(requests)) // len(loads))
        last: tuple[list[int], int] | None = None
        for request in requests:
            number = loads.index(min(loads))
            if last is not None and last[0] == request.prompt_ids:
                number = last[1] if loads[last[1]] < fair else number
            last = request.prompt_ids, number
            loads[number] += 1
            shares.setdefault(number, []).append(request)
            self._holder[request.id] = self.replicas[number]
        for number, share in shares.items():
            self.replicas[number].submit(share)

    def poll(self, ids: Sequence[str], timeout_s: float) -> list[GenerationResult]:
        """See ``GenerationStream``."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            while True:
                found = list(self._take(ids))
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                self._news.wait(left)

    def abort(self, ids: Sequence[str]) -> list[GenerationResult]:
        """See ``GenerationStream``."""
        found: list[GenerationResult] = []
        for replica in self.replicas:
            mine = [name for name in ids if self._holder.get(name) is replica]
            if mine:
                found += replica.abort(mine)
        for result in found:
            self._holder.pop(result.id, None)
        return found

    def prepare_for_generation(self, *args: Any, **kwargs: Any) -> None:
        """Take the GPUs back, weights and cache; nothing on CPUs and own machines."""
        self.call_all("wake", kwargs.get("tags"))

    def finish_generation(self, *args: Any, **kwargs: Any) -> None:
        """Let go of the GPUs until the next generation."""
        self.call_all("sleep")

    def update_weights(self, weights: Mapping[str, Any], version: int = 1) -> None:
        """Take new weights: Hugging Face names to full tensors, all of them."""
        self._updated = True
        # One after the other: each has a copy of all weights on its way.
        for replica in self.replicas:
            replica.call("update_weights", dict(weights), version)

    def call_all(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every engine's worker, of all at once."""
        return ask_all(self.replicas, lambda replica: replica.call(method, *args))

    @property
    def processes(self) -> int:
        """Processes of all engines that hold weights."""
        return len(self.replicas) * self.settings.processes

    def shutdown(self) -> None:
        """End the engines."""
        for replica in self.replicas:
            replica.close()

    def _all_of(self, ids: Sequence[str]) -> list[GenerationResult]:
        found: dict[str, GenerationResult] = {}
        while len(found) < len(ids):
            open_ids = [name for name in ids if name not in found]
            found |= {result.id: result for result in self.poll(open_ids, _POLL_S)}
        return [found[name] for name in ids]

    def _take(self, ids: Sequence[str]) -> Iterator[GenerationResult]:
        holders: dict[int, list[str]] = {}
        for name in ids:
            if name in self._holder:
                holders.setdefault(self._holder[name].number, []).append(name)
        for number, names in holders.items():
            for result in self.replicas[number].take(names):
                del self._holder[result.id]
                yield result

    def _revived(self, replica: Replica) -> None:
        if self.revive is not None:
            self.revive(replica)
        elif self._updated or self.settings.load_format == "dummy":
            raise TrainingError(
                f"generation engine {replica.number} died, and nobody can send its "
                "successor the weights; start again."
            )


def _copy_seed(seed: int, copy: int) -> int:
    """Of one of a row's responses; the first has the row's own."""
    return derive_seed(seed, "copy", copy) if copy else seed


def ask_all(replicas: Sequence[Replica], ask: Callable[[Replica], Any]) -> list[Any]:
    """What each engine answers, in order; all are asked at once."""
    with ThreadPoolExecutor(len(replicas)) as pool:
        return list(pool.map(ask, replicas))


def _slots(
    cluster: RayVirtualCluster, settings: VllmSettings
) -> list[tuple[int, list[int]]]:
    """(node, devices on it) of every engine."""
    size, slots = settings.processes, []
    for bundle, places in enumerate(cluster.workers_per_node):
        if places % size:
            raise ConfigurationError(
                f"engines of {size} processes (tensor x pipeline parallel) do not "
                f"divide the {places} places of node {bundle}"
            )
        slots += [
            (bundle, list(range(first, first + size)))
            for first in range(0, places, size)
        ]
    return slots


def _start_group(
    cluster: RayVirtualCluster,
    settings: VllmSettings,
    *,
    bundle: int,
    devices: list[int] | None,
    shares: bool,
) -> RayWorkerGroup:
    variables = process_variables(settings)
    if cluster.use_gpus and devices is not None:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
    size = settings.processes
    return cluster.start_workers(
        EngineWorker,
        num_workers=1,
        env=variables,
        init_kwargs={"settings": settings},
        options=WorkerOptions(
            bundles=[bundle],
            num_cpus=0 if shares else size * cluster.num_cpus_per_worker,
            num_gpus=0 if shares or not cluster.use_gpus else size,
            max_concurrency=_CALLS_AT_ONCE,
        ),
    )
