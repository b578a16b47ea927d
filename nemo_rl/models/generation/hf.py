"""HuggingFaceGeneration: a generator by name, on the DTensor and HF engines.

The weights are the model's own until ``update_weights``; nothing is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_rl.config.dtensor import DTensorConfig
from nemo_rl.config.generation import GenerationConfig
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.distributed.interfaces import VirtualCluster
from nemo_rl.models.generation.interfaces import GenerationInterface
from nemo_rl.models.policy.by_keywords import HuggingFacePolicy
from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.suggest import did_you_mean

_NO_OTHER = {"repetition_penalty": (None, 1.0), "pad_token_id": (None, 0)}
"""Options of transformers that have one value here."""


class HuggingFaceGeneration(GenerationInterface):
    """Samples from a Hugging Face model.

    Args:
        model_name: folder or name of the model; or a cluster, with ``config``.
        config: fields of ``policy.generation``, ``model_name`` among them.
        tokenizer: supplies the stop token; without one, generation_config.json does.
        **kwargs: the same fields, and those of ``HuggingFacePolicy``. Of transformers'
            own: ``eos_token_id`` (one or several), ``do_sample``.

    Raises:
        ConfigurationError: an option that is unknown or cannot be.

    Example:
        >>> generator = HuggingFaceGeneration("my-model", max_new_tokens=32)
        ... # doctest: +SKIP
        >>> generator.generate(prompts, greedy=False)  # doctest: +SKIP
    """

    def __init__(
        self,
        model_name: str | VirtualCluster,
        config: Mapping[str, Any] | GenerationConfig | None = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> None:
        given = dict(config) if config is not None else {}
        given = {k: v for k, v in given.items() if v is not None} | kwargs
        cluster = None
        if not isinstance(model_name, str):
            cluster = model_name
            if "model_name" not in given:
                raise ConfigurationError("config names no model: set model_name in it.")
            model_name = given["model_name"]
        given.pop("model_name", None)
        if given.pop("backend", None) not in (None, "hf"):
            raise ConfigurationError("HuggingFaceGeneration needs backend: 'hf'.")
        self._greedy = not given.pop("do_sample", True)
        if (stops := given.pop("eos_token_id", None)) is not None:
            given["stop_token_ids"] = [stops] if isinstance(stops, int) else stops
        for name, allowed in _NO_OTHER.items():
            if (value := given.pop(name, None)) not in allowed:
                raise ConfigurationError(
                    f"{name}={value!r} is not available; leave it out."
                )
        fields = GenerationConfig.model_fields
        sampling = {name: given.pop(name) for name in [*given] if name in fields}
        self._check(given)
        self.policy = HuggingFacePolicy(
            model_name, tokenizer, cluster, generation=sampling, **given
        )

    def generate(self, data: BatchedDataDict, greedy: bool) -> BatchedDataDict:
        """See ``GenerationInterface.generate``."""
        return self.policy.generate(data, greedy or self._greedy)

    def prepare_for_generation(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to prepare: the weights stay where they are."""

    def finish_generation(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to let go of."""

    def update_weights(self, weights: Mapping[str, Any]) -> None:
        """Take new weights: Hugging Face names to full tensors, all of them."""
        self.policy.import_weights(weights)

    def shutdown(self) -> None:
        """End the workers."""
        self.policy.shutdown()

    @staticmethod
    def _check(rest: Mapping[str, Any]) -> None:
        known = {
            *GenerationConfig.model_fields,
            *PolicyConfig.model_fields,
            *DTensorConfig.model_fields,
            *("torch_dtype", "dtype", "device_map", "trust_remote_code"),
            *("load_in_8bit", "load_in_4bit", "eos_token_id", "do_sample"),
        }
        for name in rest:
            if name not in known:
                raise ConfigurationError(
                    f"HuggingFaceGeneration has no option {name!r}."
                    f"{did_you_mean(name, known)}"
                )
