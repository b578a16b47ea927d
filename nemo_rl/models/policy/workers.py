"""PolicyWorker: an actor shell around the engines of one rank.

Knows no Ray: a worker group constructs it and calls its methods, on every rank at once.
An engine of the user's own may leave out what its recipe never asks for.
"""

from __future__ import annotations

import inspect
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nemo_rl.backends import factory
from nemo_rl.backends.generation.base import GenerationBackend, SamplingParams
from nemo_rl.backends.platform.setup import peak_resident_bytes
from nemo_rl.backends.refit.base import RefitLink, TensorSpec
from nemo_rl.backends.training.base import (
    EngineConfig,
    LossFunction,
    TrainingBackend,
)
from nemo_rl.config.backends import (
    generates_apart,
    generation_backend,
    parallel_dims,
    training_backend,
)
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.distributed.rank import RankInfo
from nemo_rl.models.policy.weight_sender import WeightSender
from nemo_rl.utils.exceptions import ConfigurationError

_PER_UPDATE = ("grad_norm", "learning_rate", "update_successful")


class PolicyWorker:
    """One rank of a policy: trains, scores and generates with the same weights.

    Args:
        rank_info: this worker's place.
        policy: the policy section as plain data.
        model_folder: local Hugging Face folder of the base model.
        tokenizer_folder: loaded only when stop strings ask for text.
        keep_reference: keep the base weights for the KL penalty.
        teacher_folder: local Hugging Face folder of a teacher, None without one.
        seed: the run's seed.
        threads: CPU threads of this rank.
        classes: backends that only the driver knows, see ``factory.own_classes``.
    """

    def __init__(  # noqa: PLR0913 - keyword-only; what one policy tells all ranks
        self,
        rank_info: RankInfo,
        *,
        policy: dict[str, Any],
        model_folder: str,
        tokenizer_folder: str | None = None,
        keep_reference: bool = False,
        teacher_folder: str | None = None,
        seed: int = 0,
        threads: int | None = None,
        classes: dict[tuple[str, str], type] | None = None,
    ) -> None:
        factory.adopt(classes or {})
        self.rank = rank_info
        self.policy = PolicyConfig.from_mapping(policy)
        self.training: Any = factory.get_training_backend(training_backend(self.policy))
        self.training.setup(
            EngineConfig(
                rank=rank_info,
                policy=self.policy,
                model_folder=Path(model_folder),
                keep_reference=keep_reference,
                teacher_folder=Path(teacher_folder) if teacher_folder else None,
                seed=seed,
                threads=threads,
            )
        )
        if self.policy.generation.stop_strings and tokenizer_folder is not None:
            from nemo_rl.data.tokenizer import load_tokenizer

            self.training.decode = load_tokenizer(tokenizer_folder).decode
        self.generation: Any = None
        generator = generation_backend(self.policy)
        if generator and not generates_apart(self.policy):
            self.generation = factory.get_generation_backend(generator)
            self.generation.setup(self.training)
            self.refit()

    def describe(self) -> dict[str, Any]:
        """Where this rank runs and what it holds, for the log."""
        facts = {"rank": self.rank.rank, "host": socket.gethostname()}
        if (platform := self._platform()) is not None:
            facts["device"] = str(platform.device)
        if (model := getattr(self.training, "model", None)) is not None:
            facts["parameters"] = sum(p.numel() for p in model.parameters())
        return {**facts, "torch": torch.__version__}

    def generate(
        self, prompts: dict[str, Any], params: SamplingParams
    ) -> dict[str, torch.Tensor]:
        """Responses for this replica's prompts."""
        if self.generation is None:
            raise ConfigurationError(
                "there is no generation backend for the training backend "
                f"{training_backend(self.policy)!r}: name one in "
                "policy.generation.backend ('module:Class')."
            )
        return self.generation.generate(prompts, params)

    def get_logprobs(self, batch: dict[str, Any]) -> torch.Tensor | None:
        """Log-probs of this replica's rows; None off the last pipeline stage."""
        return self._method("get_logprobs", "several updates per step")(batch)

    def get_reference_logprobs(self, batch: dict[str, Any]) -> torch.Tensor | None:
        """As ``get_logprobs`` under the base weights."""
        needs = "loss_fn.reference_policy_kl_penalty above 0"
        return self._method("get_reference_logprobs", needs)(batch)

    def get_scores(self, batch: dict[str, Any]) -> torch.Tensor | None:
        """A reward model's scores of this replica's rows; None off the last stage."""
        needs = "policy.reward_model_cfg.enabled"
        return self._method("get_scores", needs)(batch)

    def train_step(
        self, batch: dict[str, Any], loss_fn: LossFunction
    ) -> dict[str, Any]:
        """One update from this replica's shard of a global batch."""
        start = time.process_time()
        result = _with_micro_metrics(self.training.train_step(batch, loss_fn))
        result["cpu_s"] = time.process_time() - start
        platform = self._platform()
        peak = platform.peak_memory_bytes() if platform else peak_resident_bytes()
        result["peak_memory_bytes"] = peak
        return result

    def refit(self) -> None:
        """Give the generation engine the trained weights, unless it shares them."""
        if self.generation is None or getattr(self.generation, "shares_weights", False):
            return
        export = self._method("export_weights", "a generator with weights of its own")
        update = _defined(self.generation, "update_weights", GenerationBackend)
        if update is None:
            raise _lacks(self.generation, "update_weights", "weights of its own")
        update(dict(export()))

    def export_weights(self, keep: bool) -> dict[str, torch.Tensor] | None:
        """Full tensors on the CPU under their Hugging Face names.

        Every rank takes part; those without ``keep`` return None.
        """
        export = self._method("export_weights", "a generator with weights of its own")
        weights = {}
        for name, tensor in export():
            if keep:
                weights[name] = tensor.detach().to("cpu", copy=True)
        return weights if keep else None

    def refit_plan(self) -> list[TensorSpec] | None:
        """What this rank sends to a generator of its own; None where another sends."""
        return self._sender().plan()

    def send_weights(
        self, link: RefitLink, observer: Callable[[], Any] | None = None
    ) -> dict[str, Any]:
        """Take this rank's part in a transfer; see ``WeightSender.send``."""
        return self._sender().send(link, observer)

    def import_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Replace the weights by full tensors under their Hugging Face names."""
        self._method("import_weights", "a policy that takes weights")(weights)
        self.refit()

    def save_checkpoint(self, path: str, with_optimizer: bool = True) -> None:
        """Write this rank's part of a checkpoint."""
        save = self._method("save_checkpoint", "checkpointing.enabled")
        parameters = inspect.signature(save).parameters.values()
        if any(
            p.name == "with_optimizer" or p.kind == p.VAR_KEYWORD for p in parameters
        ):
            save(Path(path), with_optimizer=with_optimizer)
        else:
            save(Path(path))

    def load_checkpoint(self, path: str) -> None:
        """Restore this rank's part of a checkpoint."""
        self._method("load_checkpoint", "checkpointing.resume")(Path(path))
        self.refit()

    def save_hf(self, folder: str) -> None:
        """Write this rank's part of a Hugging Face folder."""
        needs = "checkpointing.export_hf or save_consolidated"
        self._method("save_hf", needs)(Path(folder))

    def shutdown(self) -> None:
        """Release memory and process groups."""
        for engine in (self.generation, self.training):
            if hasattr(engine, "shutdown"):
                engine.shutdown()

    def _sender(self) -> WeightSender:
        export = self._method("export_weights", "a generator with weights of its own")
        optional = [
            _defined(self.training, name, TrainingBackend)
            for name in ("weight_specs", "is_needed_to_export")
        ]
        place = parallel_dims(self.policy, self.rank.world_size).coordinates(
            self.rank.rank
        )
        platform = self._platform()
        device = getattr(platform, "device", None) or torch.device("cpu")
        return WeightSender(place, export, *optional, device=device)

    def _platform(self) -> Any:
        return getattr(self.training, "platform", None)

    def _method(self, name: str, needs: str) -> Callable[..., Any]:
        method = _defined(self.training, name, TrainingBackend)
        if method is None:
            raise _lacks(self.training, name, needs)
        return method


def _defined(engine: Any, name: str, protocol: type) -> Callable[..., Any] | None:
    """An engine's method; None if it has none but the protocol's empty one."""
    method = getattr(engine, name, None)
    empty = getattr(protocol, name, None)
    return None if getattr(method, "__func__", method) is empty else method


def _lacks(engine: Any, method: str, needs: str) -> ConfigurationError:
    return ConfigurationError(
        f"the backend {type(engine).__name__} defines no {method}, which {needs} "
        "needs. Define it, or change the recipe."
    )


def _with_micro_metrics(result: dict[str, Any]) -> dict[str, Any]:
    """A step's result in the form of ``TrainingBackend.train_step``.

    An engine that reports numbers of the update and no micro-batches is taken to have
    had one: its numbers are shares of its replica.
    """
    if "micro_metrics" in result:
        return dict(result)
    kept = {name: result[name] for name in _PER_UPDATE if name in result}
    shares = {
        name: float(value)
        for name, value in result.items()
        if name not in kept and isinstance(value, int | float | torch.Tensor)
    }
    return {**kept, "micro_metrics": [shares]}
