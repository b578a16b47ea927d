"""Configuration of on-policy distillation: its sections and the whole recipe.

Agarwal et al. 2023, "On-Policy Distillation of Language Models" (arXiv:2306.13649).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from nemo_rl.config.base import BaseConfig
from nemo_rl.config.loop import LoopConfig
from nemo_rl.config.master import MasterConfig, batch_size_follows
from nemo_rl.config.validation import validate_batches, validate_master


class TeacherConfig(BaseConfig):
    """The teacher section: whose distribution is learned."""

    model_name: str
    """Hugging Face folder, hub name or packaged model, of the policy's vocabulary."""

    @field_validator("model_name")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("is empty; expected a folder or a model's name.")
        return value


_STEP = ("num_prompts_per_step", "num_generations_per_prompt")
"""Their product is what a step trains on."""


class DistillationConfig(LoopConfig):
    """The distillation section: how much is sampled, how closely it is compared."""

    num_prompts_per_step: int = Field(32, ge=1)
    """Prompts per step."""
    num_generations_per_prompt: int = Field(1, ge=1)
    """Responses of the policy per prompt."""
    topk_logits_k: int | None = Field(64, ge=1)
    """The teacher's likeliest tokens that are compared; None: the whole vocabulary."""
    max_val_samples: int = Field(256, ge=1)
    """Prompts per validation."""
    val_batch_size: int = Field(256, ge=1)
    """Prompts sampled at once in a validation."""


class DistillationLossConfig(BaseConfig):
    """The loss_fn section: which divergence between teacher and policy."""

    kl_type: Literal["forward", "reverse", "mixed"] = "mixed"
    """KL(teacher, policy), KL(policy, teacher), or both."""
    mixed_kl_weight: float = Field(0.5, ge=0, le=1)
    """Weight of the forward divergence in "mixed"; the reverse one has the rest."""
    zero_outside_topk: bool = False
    """The teacher gives other tokens nothing; false compares the choice among the K."""

    @model_validator(mode="after")
    def _finite(self) -> Self:
        if self.zero_outside_topk and self.kl_type != "forward":
            raise ValueError(
                f"zero_outside_topk=true with kl_type={self.kl_type!r}: the policy "
                "gives other tokens something, so the reverse divergence is infinite. "
                "Set kl_type to 'forward', or zero_outside_topk to false."
            )
        return self


class DistillationMasterConfig(MasterConfig):
    """A whole recipe of distillation."""

    section_defaults: ClassVar[dict[str, Any]] = {
        "checkpointing": {"checkpoint_dir": "results/distillation"}
    }

    teacher: TeacherConfig
    """Whose distribution is learned."""
    distillation: DistillationConfig = Field(default_factory=DistillationConfig)
    """How much is sampled, how closely it is compared."""
    loss_fn: DistillationLossConfig = Field(default_factory=DistillationLossConfig)
    """Which divergence between teacher and policy."""

    @property
    def algorithm_section(self) -> DistillationConfig:
        """The distillation section, under the name that every algorithm has."""
        return self.distillation

    @property
    def samples_per_step(self) -> int:
        """Responses per step."""
        section = self.distillation
        return section.num_prompts_per_step * section.num_generations_per_prompt

    @classmethod
    def adapt(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Let train_global_batch_size be a step's responses unless it is given."""
        return batch_size_follows(values, "distillation", DistillationConfig, _STEP)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        validate_master(self)
        names = "distillation.num_prompts_per_step x num_generations_per_prompt"
        validate_batches(self.policy, self.parallel_dims, self.samples_per_step, names)
        return self
