"""SyncedGeneration: a generator with its own weights, kept at those of the trainer.

Knows when weights move and when the generator may use its device; not how either is
done (``refit.py``, ``models/generation/vllm.py``).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_rl.backends.refit.digest import DigestObserver
from nemo_rl.backends.refit.held import merge_ranks
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.distributed import ray_session
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.distributed.interfaces import WorkerGroup
from nemo_rl.models.generation.replica import Replica
from nemo_rl.models.generation.vllm import VllmGeneration, ask_all
from nemo_rl.models.policy.canary import Score
from nemo_rl.models.policy.engines import EngineReceivers
from nemo_rl.models.policy.guard import Guard, GuardOutcome
from nemo_rl.models.policy.guard_findings import Transferred
from nemo_rl.models.policy.refit import Refit, RefitReport
from nemo_rl.models.policy.transport import choose_transport
from nemo_rl.utils.exceptions import ConsistencyError, RefitError, WorkerDied

_GUARD = "guard.json"
_ALL = ("weights", "kv_cache")
"""What of an engine sleeps, by vLLM's names."""


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
        self._current = self._sent = False
        # What the engines have of a device that they share; they start without it.
        shared = config.generation.colocated.enabled
        self._awake: set[str] = set() if shared else set(_ALL)
        self._refit: Refit | None = None
        self._log_dir = Path("logs")
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

    def report_to(self, log_dir: Path, run_config: Mapping[str, Any]) -> None:
        """Say where reports of the guard go, and buckets that travel as files."""
        self._log_dir = Path(log_dir)
        self.guard.report_to(log_dir, run_config)

    def wake(self) -> None:
        """Let the engines have their device."""
        self._wake(_ALL)

    def rest(self) -> None:
        """Free the device that the engines share with training."""
        if self._awake and self._config.generation.colocated.enabled:
            self.engines.finish_generation()
            self._awake = set()

    def save(self, folder: Path) -> None:
        """Write what the guard knows of the run so far into a checkpoint's folder."""
        text = json.dumps(self.guard.state_dict())
        (folder / _GUARD).write_text(text, encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Go on where ``save`` was called; a checkpoint without engines has nothing."""
        if (folder / _GUARD).is_file():
            text = (folder / _GUARD).read_text(encoding="utf-8")
            self.guard.load_state_dict(json.loads(text))

    def shutdown(self) -> None:
        """End the engines."""
        self.engines.shutdown()

    def _answer(self, prompts: BatchedDataDict) -> BatchedDataDict:
        self.wake()
        return self.engines.generate(prompts, greedy=False)

    def _transfer(self) -> tuple[RefitReport, Transferred | None]:
        """Send all engines the weights; digests of what was sent and what they hold.

        If one of them dies over it, they are sent again to all.
        """
        while True:
            lives = self._lives()
            try:
                return self._transfer_once()
            except (RefitError, WorkerDied):
                if self._lives() == lives:
                    raise

    def _lives(self) -> list[int]:
        """How often each engine was started anew, all of them alive."""
        ask_all(self.engines.replicas, Replica.ensure_alive)
        return [replica.restarts for replica in self.engines.replicas]

    def _transfer_once(self) -> tuple[RefitReport, Transferred | None]:
        with self._weights:
            if self._refit is None:
                self._refit = self._refit_to(self.engines.replicas)
            report = self._send(self._refit)
            return report, self._held(self._refit, report, self.engines.replicas)

    def _held(
        self, refit: Refit, report: RefitReport, replicas: Sequence[Replica]
    ) -> Transferred | None:
        if not self._digests:
            return None
        specs = [spec for stage in refit.plan for spec in stage]
        shapes = {spec.name: spec.shape for spec in specs}
        return Transferred(
            version=report.version,
            sent=report.observed,
            engines=[
                merge_ranks(ranks, shapes)
                for ranks in ask_all(replicas, lambda r: r.call("held", specs))
            ],
        )

    @property
    def _digests(self) -> bool:
        return self.guard.config.enabled and self.guard.config.digests

    def _send(self, refit: Refit) -> RefitReport:
        self._wake(("weights",))  # the cache later: both and a bucket may not fit
        return refit.run(self.version)

    def _wake(self, tags: Sequence[str]) -> None:
        missing = [tag for tag in tags if tag not in self._awake]
        if missing:
            self.engines.prepare_for_generation(tags=missing)
            self._awake.update(missing)

    def _refit_to(self, replicas: Sequence[Replica]) -> Refit:
        generation, settings = self._config.generation, self.engines.settings
        # A group in the driver's own process has no places, and no engines beside it.
        places = [*getattr(self._workers, "places", ()), *(r.place for r in replicas)]
        hosts = {place.host for place in places}
        transport = choose_transport(
            generation.refit,
            colocated=generation.colocated.enabled,
            use_gpus=settings.use_gpu,
            same_host=len(hosts) == 1,
        )
        trained = self._config.precision
        return Refit(
            self._workers,
            self._receivers(replicas),
            generation.refit,
            transport=transport,
            address=ray_session.address_here(),
            folder=str(self._log_dir.resolve() / "refit"),
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
            refit = self._refit_to([replica])
            report = self._send(refit)
            held = self._held(refit, report, [replica])
            refit.close()
        findings = []
        if held is not None:
            findings = self.guard.check_digests(
                held.sent, held.engines, version=held.version
            )
        if findings:
            raise ConsistencyError(
                f"generation engine {replica.number} was started anew and does not "
                f"hold the trainer's weights: {findings[0]}"
            )
