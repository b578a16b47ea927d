"""Engines beside a policy: where they start, how they receive, what guards them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from nemo_rl.config.policy import PolicyConfig
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.infra.assets import resolve_model
from nemo_rl.models.generation.replica import Replica
from nemo_rl.models.generation.stops import end_tokens
from nemo_rl.models.generation.vllm import VllmGeneration, ask_all
from nemo_rl.models.generation.vllm_config import settings_of_policy
from nemo_rl.models.policy.guard import Guard
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

        first = {
            replica: index * self._processes
            for index, replica in enumerate(self._replicas)
        }

        def take(replica: Replica) -> list[dict[str, Any]]:
            return replica.call(
                "receive_weights", link, first[replica], version, self.recompute
            )

        reports = ask_all(self._replicas, take)
        return [report for engine in reports for report in engine]


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
    engines = VllmGeneration(places, settings, shares=not apart)
    if not apart:
        engines.finish_generation()  # training takes its memory next
    return engines


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
        max_length=config.max_total_sequence_length,
    )
