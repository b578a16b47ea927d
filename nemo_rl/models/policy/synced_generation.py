"""SyncedGeneration: a generator with its own weights, kept at those of the trainer.

Knows when weights move and when the generator may use its device; not how either is
done (``refit.py``, ``models/generation/vllm.py``).
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nemo_rl.backends.refit.digest import DigestObserver
from nemo_rl.backends.refit.held import merge_ranks
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.distributed.interfaces import WorkerGroup
from nemo_rl.infra.assets import resolve_model
from nemo_rl.models.generation.replica import Replica
from nemo_rl.models.generation.stops import end_tokens
from nemo_rl.models.generation.vllm import VllmGeneration
from nemo_rl.models.generation.vllm_config import settings_of_policy
from nemo_rl.models.policy.canary import Score
from nemo_rl.models.policy.guard import Guard, GuardOutcome
from nemo_rl.models.policy.guard_findings import Transferred
from nemo_rl.models.policy.refit import Refit, RefitReport, choose_transport
from nemo_rl.utils.exceptions import ConfigurationError


class EngineReceivers:
    """Engines as the receiving side of a ``Refit``.

    Args:
        replicas: the engines that receive.
        processes: of each, numbered one engine after the other.

    Attributes:
        recompute: have running responses compute their cache anew.
    """

    def __init__(self, replicas: Sequence[Replica], processes: int) -> None:
        self._replicas, self._processes = list(replicas), processes
        self.recompute = False

    @property
    def num_receivers(self) -> int:
        """Processes of all engines."""
        return len(self._replicas) * self._processes

    @property
    def membership(self) -> Hashable:
        """How often each engine was started."""
        return tuple((replica.number, replica.restarts) for replica in self._replicas)

    def receive(self, link: Any, version: int) -> list[dict[str, Any]]:
        """Have every engine take the weights; see ``refit.ReceiverGroup``."""

        def one(index: int) -> list[dict[str, Any]]:
            first = index * self._processes
            return self._replicas[index].call(
                "receive_weights", link, first, version, self.recompute
            )

        with ThreadPoolExecutor(len(self._replicas)) as pool:
            reports = list(pool.map(one, range(len(self._replicas))))
        return [report for engine in reports for report in engine]


class SyncedGeneration:
    """Generates with engines whose weights follow those of a policy's workers.

    Args:
        workers: the training ranks.
        engines: what generates.
        config: the policy section.
        weights: held while weights change or move; an engine that comes back waits.
        score: the trainer's log-probs of a batch.
        guard: checks every transfer.

    Attributes:
        version: of the trainer's weights; what the next refit calls them.
        engines: the generator; takes requests at any time (``GenerationStream``).
    """

    follows = True
    """Let ``generate`` send the weights first where they have changed since; False: it
    samples with those of the last ``refit``, while training goes on."""
    recompute_cache = False
    """Have responses that run over a refit compute their cache anew."""

    def __init__(
        self,
        workers: WorkerGroup,
        engines: VllmGeneration,
        config: PolicyConfig,
        *,
        weights: threading.RLock,
        score: Score,
        guard: Guard,
    ) -> None:
        self.version, self.engines = 0, engines
        self._workers, self._config, self._weights = workers, config, weights
        self._score, self.guard = score, guard
        self._current, self._awake, self._sent = False, True, False
        self._refit: Refit | None = None
        engines.revive = self._revive

    def generate(self, data: BatchedDataDict, greedy: bool = False) -> BatchedDataDict:
        """Sample one response per row with the trainer's present weights."""
        if not self._current and (self.follows or not self._sent):
            self.refit()
        self.wake()
        return self.engines.generate(data, greedy)

    def outdated(self) -> None:
        """The trainer's weights have changed."""
        self._current = False

    def refit(self) -> dict[str, float]:
        """Send the trainer's weights and check that they arrived.

        Returns:
            Metrics of the transfer and of the guard.

        Raises:
            ConsistencyError: the engines do not have the trainer's weights.
            RefitError: the weights did not get there.
        """
        with self._weights:
            report, transferred = self._transfer()
            checked = self.guard.after_refit(
                step=self.version,
                generate=self._answer,
                score=self._score,
                transferred=transferred,
                resync=lambda: self._transfer()[1],
            )
            self._current = self._sent = True
        return {**report.metrics(), **checked}

    def check_rollout(self, batch: BatchedDataDict) -> GuardOutcome:
        """Compare a batch's log-probs with the trainer's before it learns from it."""
        return self.guard.before_update(
            batch,
            step=self.version + 1,
            score=self._score,
            version=self.version,
            generate=self._answer,
            resync=lambda: self._transfer()[1],
        )

    def wake(self) -> None:
        """Let the engines have their device."""
        if not self._awake:
            self.engines.prepare_for_generation(tags=["kv_cache"])
            self._awake = True

    def rest(self) -> None:
        """Free the device that the engines share with training."""
        if self._awake and self._config.generation.colocated.enabled:
            self.engines.finish_generation()
            self._awake = False

    def shutdown(self) -> None:
        """End the engines."""
        self.engines.shutdown()

    def _answer(self, prompts: BatchedDataDict) -> BatchedDataDict:
        self.wake()
        return self.engines.generate(prompts, greedy=False)

    def _transfer(self) -> tuple[RefitReport, Transferred | None]:
        """Send all engines the weights; digests of what was sent and what they hold."""
        with self._weights:
            for replica in self.engines.replicas:
                replica.ensure_alive()
            if self._refit is None:
                self._refit = self._refit_to(self.engines.replicas)
            report = self._send(self._refit)
            if not self._digests:
                return report, None
            specs = [spec for stage in self._refit.plan for spec in stage]
            shapes = {spec.name: spec.shape for spec in specs}
            held = self.engines.call_all("held", specs)
            return report, Transferred(
                version=self.version,
                sent=report.observed,
                engines=[merge_ranks(ranks, shapes) for ranks in held],
            )

    @property
    def _digests(self) -> bool:
        return self.guard.config.enabled and self.guard.config.digests

    def _send(self, refit: Refit) -> RefitReport:
        if not self._awake:
            self.engines.prepare_for_generation(tags=["weights"])
        return refit.run(self.version)

    def _refit_to(self, replicas: Sequence[Replica]) -> Refit:
        generation, settings = self._config.generation, self.engines.settings
        # A group in the driver's own process has no places, and no engines beside it.
        places = [*getattr(self._workers, "places", ()), *(r.place for r in replicas)]
        transport = choose_transport(
            generation.refit,
            colocated=generation.colocated.enabled,
            use_gpus=settings.use_gpu,
            same_host=len({place.host for place in places}) == 1,
        )
        trained = self._config.precision
        return Refit(
            self._workers,
            self._receivers(replicas),
            generation.refit,
            transport=transport,
            cast=None if settings.dtype == trained else settings.dtype,
            observer=DigestObserver if self._digests else None,
        )

    def _receivers(self, replicas: Sequence[Replica]) -> EngineReceivers:
        receivers = EngineReceivers(replicas, self.engines.settings.processes)
        receivers.recompute = self.recompute_cache
        return receivers

    def _revive(self, replica: Replica) -> None:
        """Send one engine, started anew, the weights the trainer has now."""
        with self._weights:
            self._send(self._refit_to([replica]))


def start_engines(
    config: PolicyConfig,
    cluster: Any,
    tokenizer: Any,
    *,
    seed: int = 0,
    threads: int | None = None,
) -> VllmGeneration:
    """Engines on a cluster's places; before training takes its memory there.

    Args:
        config: the policy section.
        cluster: places that train; its ``generation`` has those that only generate.
        tokenizer: supplies the stop token.
        seed: of the first engine.
        threads: CPU threads of each process.

    Raises:
        ConfigurationError: generation is to have places of its own, and has none.
    """
    apart = not config.generation.colocated.enabled
    places = getattr(cluster, "generation", None) if apart else cluster
    if places is None:
        raise ConfigurationError(
            "policy.generation.colocated.enabled=false: the cluster has no places for "
            "generation. Make it with nemo_rl.infra.resources.ResourceManager("
            "config.cluster, config.layout).allocate(), or set its `generation`."
        )
    if apart:
        # Engines start first, and a Ray of theirs alone would have no room for more.
        cluster.connect()
    settings = settings_of_policy(
        config, tokenizer, use_gpus=cluster.use_gpus, seed=seed, threads=threads or 1
    )
    return VllmGeneration(places, settings, shares=not apart)


def guard_of(config: PolicyConfig, engine_dtype: str, tokenizer: Any) -> Guard:
    """The guard of a policy's engines; reports go to ``logs`` until told otherwise.

    Args:
        config: the policy section.
        engine_dtype: of the engines' weights.
        tokenizer: for the canaries; without one their tokens are drawn.
    """
    exact = config.precision == engine_dtype == "float32"
    folder = resolve_model(config.model_name)
    hf_config = {**read_hf_config(folder), **config.hf_config_overrides}
    return Guard(
        config.generation.guard,
        log_dir="logs",
        precision="float32" if exact else "bfloat16",
        tokenizer=tokenizer,
        vocab_size=int(hf_config.get("vocab_size", 0)),
        special_ids=end_tokens(tokenizer, folder),
    )
