"""The env section: what scores a response; knows no environment."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from nemo_rl.config.base import BaseConfig


class MathEnvConfig(BaseConfig):
    """env.math: grading of mathematical answers."""

    num_workers: int = Field(8, ge=1)
    """Processes that grade."""
    timeout_s: float = Field(10.0, gt=0)
    """Seconds for one answer; after them it scores 0 and its process is ended."""
    math_verify_impl: str | None = None
    """Accepted; there is one implementation."""
    stop_strings: list[str] | None = None
    """Accepted; policy.generation.stop_strings decides."""


class ReasoningGymEnvConfig(BaseConfig):
    """env.reasoning_gym: the scorers of the tasks of reasoning_gym."""

    num_workers: int = Field(2, ge=1)
    """Processes that score."""
    timeout_s: float = Field(10.0, gt=0)
    """Seconds for one answer; after them it scores 0 and its process is ended."""
    partial_credit: bool = False
    """Give the scorer's fraction; false gives 1 for a full score and 0 else."""
    require_tags: bool = True
    """Without <answer> tags score 0; false takes the whole response."""


class SlidingPuzzleEnvConfig(BaseConfig):
    """env.sliding_puzzle: a game of several turns."""

    max_moves: int = Field(20, ge=1)
    """Moves, invalid ones too, after which the game is lost."""


class CodeEnvConfig(BaseConfig):
    """env.code: tests of a response's code block in a sandbox."""

    num_workers: int = Field(2, ge=1)
    """Programs that run at the same time."""
    timeout_s: float = Field(10.0, gt=0)
    """Seconds of wall-clock for one program."""
    cpu_s: int = Field(5, ge=1)
    """Seconds of processor time for one process."""
    memory_mb: int = Field(1024, ge=64)
    """Address space of one process."""
    max_file_mb: int = Field(16, ge=1)
    """Largest file, and largest output."""
    max_processes: int = Field(16, ge=1)
    """Processes and threads of one program."""
    network: Literal["none", "allow"] = "none"
    """"none" needs namespaces of the kernel; "allow" runs without where refused."""
    partial_credit: bool = False
    """The fraction of tests passed; false gives 1 for all of them and 0 else."""


class RewardModelEnvConfig(BaseConfig):
    """env.reward_model: a sequence classifier with one output as the reward."""

    model_name: str
    """Hugging Face folder or hub name of the classifier."""
    batch_size: int = Field(8, ge=1)
    """Conversations scored at once."""
    max_length: int | None = Field(None, ge=2)
    """Longest conversation in tokens; the beginning of a longer one is cut off."""


class LLMJudgeEnvConfig(BaseConfig):
    """env.llm_judge: a model behind an OpenAI-style URL as the judge."""

    base_url: str
    """URL up to and with "/v1"."""
    judge: str
    """Name of the model that judges."""
    instruction: str | None = None
    """What it is asked, with {prompt}, {response}, {answer}; null: its own words."""
    max_score: float = Field(10.0, gt=0)
    """Best mark; the reward is the mark divided by it."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""
    request: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request, such as temperature."""
    num_requests: int = Field(8, ge=1)
    """Requests under way at the same time."""
    timeout_s: float = Field(60.0, gt=0)
    """Seconds for one request."""
    max_retries: int = Field(4, ge=0)
    """Times a failed request is repeated, each after twice the wait."""


class EnvConfig(BaseConfig):
    """What scores a response."""

    name: str | None = None
    """Environment; None means the one that belongs to the dataset."""
    reward_fn: str | None = None
    """Your own: "module:function", looked for beside the recipe first."""
    batched: bool | None = None
    """The function takes lists; None decides from its signature."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the named environment, or keywords of reward_fn."""
    num_workers: int | None = Field(None, ge=0)
    """Processes that the environment runs in; 0: the driver; None: it knows best."""
    timeout_s: float | None = Field(None, gt=0)
    """Seconds for a step of such a process; None waits."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs of each such process, beside those of training."""
    tasks: dict[str, Any] = Field(default_factory=dict)
    """task_name of a row -> an env section of its own; "default" is for the others."""
    multi_reward: dict[str, Any] = Field(default_factory=dict)
    """Name -> an env section with a weight; the reward is the weighted sum."""
    math: MathEnvConfig | None = None
    """Grading of mathematical answers; chooses it where name is not given."""
    reasoning_gym: ReasoningGymEnvConfig | None = None
    """Scorers of reasoning_gym; chooses them where name is not given."""
    sliding_puzzle: SlidingPuzzleEnvConfig | None = None
    """The sliding puzzle; chooses it where name is not given."""
    code: CodeEnvConfig | None = None
    """Tests of generated code; chooses them where name is not given."""
    reward_model: RewardModelEnvConfig | None = None
    """A reward model; chooses it where name is not given."""
    llm_judge: LLMJudgeEnvConfig | None = None
    """A judge behind a URL; chooses it where name is not given."""

    @property
    def chosen(self) -> str | None:
        """The environment that the section names, if it does."""
        given = [name for name in SECTIONS if getattr(self, name)]
        return self.name or (given[0] if given else None)

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.name is not None and self.reward_fn is not None:
            raise ValueError(
                f"name={self.name!r} and reward_fn={self.reward_fn!r} both score "
                "responses; give one of them."
            )
        if self.reward_fn is not None and not _names_an_object(self.reward_fn):
            raise ValueError(
                f"reward_fn={self.reward_fn!r} does not name a function. Expected "
                "'module:function', for example 'rewards:score'."
            )
        given = [name for name in SECTIONS if getattr(self, name)]
        several = [field for field in SECTIONS[:2] if getattr(self, field)]
        if self.name is not None and several:
            raise ValueError(
                f"name={self.name!r} and {several[0]} both score responses; write it "
                f"as {several[0]}: {{default: {{name: {self.name}}}}}."
            )
        if self.name is None and len(given) + (self.reward_fn is not None) > 1:
            both = given if self.reward_fn is None else ["reward_fn", *given]
            raise ValueError(
                f"{' and '.join(both)} both score responses; set name to one of them, "
                "or weigh them in multi_reward."
            )
        return self

    @model_validator(mode="after")
    def _parts_are_sections(self) -> Self:
        for field in ("tasks", "multi_reward"):
            for name, part in getattr(self, field).items():
                try:
                    section, _ = weighted_section(part)
                except ValueError as error:
                    raise ValueError(f"{field}.{name}: {error}") from None
                if section.tasks:
                    raise ValueError(f"{field}.{name}: tasks can stand only in env.")
                if field == "tasks" and "weight" in part:
                    raise ValueError(f"{field}.{name}.weight is not a field.")
        return self


SECTIONS = ("tasks", "multi_reward", "math", "reasoning_gym") + (
    ("sliding_puzzle", "code", "reward_model", "llm_judge")
)
"""Fields of EnvConfig that choose an environment by being there."""


def weighted_section(part: Any) -> tuple[EnvConfig, float]:
    """Return a part of a sum of rewards as its env section and its weight (1)."""
    values = dict(part) if hasattr(part, "keys") else {"weight": part}
    weight = values.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise ValueError(f"weight={weight!r} is no number.")
    return EnvConfig.from_mapping(values), float(weight)


def _names_an_object(path: str) -> bool:
    module, separator, name = path.rpartition(":" if ":" in path else ".")
    return bool(module and separator and name)
