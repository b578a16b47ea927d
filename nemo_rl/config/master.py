"""MasterConfig: the sections every algorithm's recipe has; knows no algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from nemo_rl.config.backends import parallel_dims
from nemo_rl.config.base import BaseConfig, merge, plain
from nemo_rl.config.cluster import ClusterConfig
from nemo_rl.config.data import DataConfig
from nemo_rl.config.environment import EnvConfig
from nemo_rl.config.layout import ClusterLayout, cluster_layout
from nemo_rl.config.loop import OpenLoopConfig
from nemo_rl.config.parallel import ParallelDims
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.config.services import CheckpointingConfig, LoggerConfig
from nemo_rl.utils.exceptions import ConfigurationError


class MasterConfig(BaseConfig):
    """A whole recipe without the sections of its algorithm."""

    section_defaults: ClassVar[dict[str, Any]] = {}
    """Values that this algorithm sets in the common sections unless a recipe does."""
    samples: ClassVar[bool] = True
    """Whether responses are sampled; where not, the generation section has no say."""
    scores: ClassVar[bool] = False
    """Whether a reward model is trained."""

    algorithm: str | None = None
    """Name of the algorithm; None: the one whose section the recipe has."""
    policy: PolicyConfig
    """Which model, how it is trained, split and sampled."""
    data: DataConfig = Field(default_factory=DataConfig)
    """Which rows are trained and validated on."""
    env: EnvConfig = Field(default_factory=EnvConfig)
    """What scores a response."""
    checkpointing: CheckpointingConfig = Field(default_factory=CheckpointingConfig)
    """When weights, optimizer and counters are saved."""
    logger: LoggerConfig = Field(default_factory=LoggerConfig)
    """Where metrics and samples go."""
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    """How many machines, what of each."""

    _recipe_dir: Path | None = PrivateAttr(None)

    @property
    def algorithm_section(self) -> Any:
        """The algorithm's own section; a subclass says which."""
        raise NotImplementedError(f"{type(self).__name__} has no algorithm_section")

    @property
    def recipe_dir(self) -> Path | None:
        """Folder of the recipe's file, where its own code is looked for.

        Not a part of the recipe: it is set by `load_recipe` and never written out.
        """
        return self._recipe_dir

    @recipe_dir.setter
    def recipe_dir(self, folder: Path | str | None) -> None:
        self._recipe_dir = Path(folder) if folder is not None else None

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign a field, validated, or the recipe's folder."""
        if name == "recipe_dir":
            name = "_recipe_dir"
            value = Path(value) if value is not None else None
        super().__setattr__(name, value)

    def merged(self, changes: Any) -> Any:
        """Return a validated copy with nested `changes`; the folder is kept."""
        copy = super().merged(changes)
        copy.recipe_dir = self.recipe_dir
        return copy

    @property
    def parallel_dims(self) -> ParallelDims:
        """Sizes of the parallel axes; an error if they do not divide the world size."""
        return parallel_dims(self.policy, self.layout.training_size)

    @property
    def layout(self) -> ClusterLayout:
        """Which places train and which generate; an error if they do not fit."""
        return cluster_layout(self.cluster, self.policy if self.samples else None)

    @property
    def max_prompt_length(self) -> int:
        """Longest prompt in tokens.

        data.max_input_seq_length, or what max_new_tokens leaves of
        policy.max_total_sequence_length, or half of it where that leaves nothing. A
        prompt always leaves room for a token; a response ends where prompt and
        response together reach max_total_sequence_length.
        """
        total = self.policy.max_total_sequence_length
        wanted = self.data.max_input_seq_length
        if wanted is None:
            wanted = total - self.policy.generation.max_new_tokens or total // 2
        return min(wanted, total - 1)

    @property
    def max_row_length(self) -> int:
        """Longest row of the data in tokens: of a prompt where responses are sampled.

        Elsewhere a row is a whole conversation, which may fill
        policy.max_total_sequence_length.
        """
        if self.samples:
            return self.max_prompt_length
        total = self.policy.max_total_sequence_length
        return min(self.data.max_input_seq_length or total, total)

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return cls.adapt(merge(cls.section_defaults, plain(values)))

    @classmethod
    def adapt(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Fill in defaults that depend on what is given; a hook of algorithms."""
        return values


class OpenMasterConfig(MasterConfig):
    """The recipe of an algorithm of one's own: any sections beside the common ones.

    Its own section is the one that `algorithm` names, or the only other one there.

    Example:
        >>> config = OpenMasterConfig.from_mapping(
        ...     {"policy": {"model_name": "m"}, "myalgo": {"my_param": 2.0}}
        ... )
        >>> config.algorithm_section.my_param
        2.0
        >>> config.checkpointing.checkpoint_dir
        'results/myalgo'
    """

    model_config = ConfigDict(extra="allow")

    @classmethod
    def adapt(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Let checkpoints have a folder of the algorithm's name."""
        own = [name for name in values if name not in cls.model_fields]
        name = values.get("algorithm") or (own[0] if len(own) == 1 else None)
        if name is None:
            return values
        folder = {"checkpointing": {"checkpoint_dir": f"results/{name}"}}
        return merge(folder, values)

    @property
    def algorithm_section(self) -> OpenLoopConfig:
        """The algorithm's own section, with the loop's defaults filled in.

        Raises:
            ConfigurationError: there are several other sections and no `algorithm`.
        """
        sections = dict(self.model_extra or {})
        if self.algorithm is not None:
            return OpenLoopConfig.from_mapping(sections.get(self.algorithm) or {})
        if len(sections) > 1:
            raise ConfigurationError(
                f"which section is the algorithm's? Set `algorithm` to one of "
                f"{', '.join(sections)}."
            )
        return OpenLoopConfig.from_mapping(next(iter(sections.values()), {}))


def batch_size_follows(
    values: dict[str, Any],
    section: str,
    cls: type[BaseConfig],
    fields: Sequence[str] = ("batch_size",),
) -> dict[str, Any]:
    """Set policy.train_global_batch_size to what a step trains on, unless given.

    Args:
        values: a recipe.
        section: name of the algorithm's section.
        cls: of the section.
        fields: of the section; their product is what a step trains on.
    """
    policy = values.get("policy")
    if not isinstance(policy, dict) or "train_global_batch_size" in policy:
        return values
    given = values.get(section)
    given = given if isinstance(given, dict) else {}
    sizes = [given.get(name, cls.model_fields[name].default) for name in fields]
    if not all(isinstance(size, int) for size in sizes):
        return values  # what is wrong with it the section itself will say
    return {**values, "policy": {**policy, "train_global_batch_size": prod(sizes)}}
