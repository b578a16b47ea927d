"""The policy section: which model, how it is trained, split and sampled."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from nemo_rl.config import backends
from nemo_rl.config.base import BaseConfig
from nemo_rl.config.dormant import DynamicBatchingConfig, SequencePackingConfig
from nemo_rl.config.dtensor import DTensorConfig
from nemo_rl.config.generation import GenerationConfig
from nemo_rl.config.megatron import MegatronConfig
from nemo_rl.config.optimizer import OptimizerConfig, SchedulerConfig
from nemo_rl.config.schedule import check_phases, phases_from_megatron


class TokenizerConfig(BaseConfig):
    """Where the tokenizer comes from."""

    name: str | None = None
    """Folder or hub name; None means policy.model_name."""
    chat_template: str | None = None
    """Jinja text or a file's path; None means the tokenizer's own."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Not available: extra variables of the chat template."""


class RewardModelConfig(BaseConfig):
    """Train a score per sequence in place of a distribution over tokens."""

    enabled: bool = False
    """The model has one score; algorithm rm switches it on."""
    reward_model_type: Literal["bradley_terry"] = "bradley_terry"
    """What the score is trained for: pairs of a better and a worse answer."""


class PolicyConfig(BaseConfig):
    """Which model, how it is trained, split and sampled."""

    model_name: str
    """Hugging Face folder, hub name or packaged model."""
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    """Where the tokenizer comes from."""
    hf_config_overrides: dict[str, Any] = Field(default_factory=dict)
    """Entries of the model's config.json to replace."""
    learning_rate: float | None = Field(None, ge=0)
    """Short for optimizer.kwargs.lr."""
    train_global_batch_size: int = Field(512, ge=1)
    """Sequences per update of the weights."""
    train_micro_batch_size: int = Field(4, ge=1)
    """Sequences per forward and backward pass of one copy of the model."""
    logprob_batch_size: int | None = Field(None, ge=1)
    """Sequences per log-probability pass; None means train_micro_batch_size."""
    generation_batch_size: int | None = Field(None, ge=1)
    """Sequences sampled at once by a copy of the model; None means all of them."""
    max_total_sequence_length: int = Field(512, ge=2)
    """Longest sequence, prompt and response together, in tokens."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Element type of the weights in forward and backward passes."""
    max_grad_norm: float | None = Field(1.0, ge=0)
    """Clip the gradient's norm to this; 0 or None does not clip."""
    make_sequence_length_divisible_by: int = Field(1, ge=1)
    """Pad the length of every batch to a multiple of this."""
    logprob_chunk_size: int | None = Field(None, ge=1)
    """Tokens whose logits are turned to float32 at once; None means all."""
    offload_optimizer_for_logprob: bool = False
    """Accepted; the optimizer stays where it is."""
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    """Which optimizer, and its arguments."""
    scheduler: list[SchedulerConfig] | None = None
    """Phases of the learning rate; None keeps it constant."""
    training_backend: str | None = None
    """Engine that trains: a registered name or "module:Class"; None: see enabled."""
    dtensor_cfg: DTensorConfig = Field(default_factory=DTensorConfig)
    """How PyTorch's own parallelism splits and runs a Hugging Face model."""
    megatron_cfg: MegatronConfig = Field(default_factory=MegatronConfig)
    """How Megatron splits and runs the model."""
    generation: GenerationConfig = Field(default_factory=GenerationConfig)
    """How responses are sampled."""
    reward_model_cfg: RewardModelConfig = Field(default_factory=RewardModelConfig)
    """A score per sequence in place of a distribution over tokens."""
    sequence_packing: SequencePackingConfig = Field(
        default_factory=SequencePackingConfig
    )
    """Not available."""
    dynamic_batching: DynamicBatchingConfig = Field(
        default_factory=DynamicBatchingConfig
    )
    """Not available."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, values: Any) -> Any:
        """Let `optimizer: null` mean its default, and one scheduler be a list."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if values.get("optimizer", ...) is None:
            del values["optimizer"]
        if isinstance(values.get("scheduler"), dict):
            values["scheduler"] = [values["scheduler"]]
        return values

    @field_validator("model_name")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is empty; expected a folder or a model's name.")
        return value

    @field_validator("training_backend")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None:
            backends.check_name("training", value)
        return value

    @field_validator("scheduler")
    @classmethod
    def _phases_meet(
        cls, value: list[SchedulerConfig] | None
    ) -> list[SchedulerConfig] | None:
        check_phases(value)
        return value

    @model_validator(mode="after")
    def _one_training_backend(self) -> Self:
        backends.check_backends(self)
        return self

    @model_validator(mode="after")
    def _one_place_for_each_setting(self) -> Self:
        """Leave each optimizer setting, given in any of its places, in one place."""
        megatron, kwargs = self.megatron_cfg, self.optimizer.kwargs
        theirs = megatron.optimizer
        if self.learning_rate is not None:
            if theirs.lr not in (None, self.learning_rate):
                raise ValueError(
                    f"learning_rate={self.learning_rate} and megatron_cfg.optimizer.lr"
                    f"={theirs.lr} differ; keep one of them."
                )
            kwargs._settle("lr", self.learning_rate)
        betas = (theirs.adam_beta1, theirs.adam_beta2)
        for name, value in {
            "lr": theirs.lr,
            "weight_decay": theirs.weight_decay,
            "eps": theirs.adam_eps,
            "betas": tuple(
                mine if given is None else given
                for given, mine in zip(betas, kwargs.betas, strict=True)
            ),
        }.items():
            if value is not None:
                kwargs._settle(name, value)
        if theirs.clip_grad is not None:
            self._settle("max_grad_norm", theirs.clip_grad)
        if theirs.use_distributed_optimizer is not None:
            megatron._settle(
                "use_distributed_optimizer", theirs.use_distributed_optimizer
            )
        for name in ("overlap_grad_reduce", "overlap_param_gather"):
            given = getattr(megatron.distributed_data_parallel_config, name)
            if given is not None:
                megatron._settle(name, given)
        if megatron.scheduler is not None and self.scheduler is None:
            self._settle(
                "scheduler",
                phases_from_megatron(megatron.scheduler, kwargs, theirs.min_lr or 0.0),
            )
        return self
