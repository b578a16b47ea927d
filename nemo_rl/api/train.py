"""nemo_rl.train(): a model, a dataset and a reward function; nothing else is needed.

It checks its arguments, builds a config, and leaves the rest to the trainer's `fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_rl.api.functional import (
    build_config,
    create_trainer,
    is_builtin,
    trainer_class,
)
from nemo_rl.config.base import merge, plain
from nemo_rl.config.environment import SECTIONS
from nemo_rl.utils.exceptions import ConfigurationError

if TYPE_CHECKING:
    from nemo_rl.trainers.state import TrainResult

_FIT_ARGUMENTS = ("val_dataset", "callbacks")


def train(
    model: str | Path,
    dataset: Any = None,
    reward_fn: Callable[..., Any] | str | None = None,
    *,
    algorithm: str = "grpo",
    **kwargs: Any,
) -> TrainResult:
    """Train a model and return what came of it.

    Args:
        model: Hugging Face folder, hub name or packaged model.
        dataset: registered name, hub name, folder, JSONL file, list of rows,
            `datasets.Dataset` or `DataModule`; None where `data={...}` names one.
        reward_fn: `(prompt, response) -> float`, the same over lists, or
            "module:function"; None where the dataset brings its own.
        algorithm: "grpo", "sft", "dpo", "rm", "distillation", or one of your own.
            "sft", "dpo" and "rm" learn from given answers and take no `reward_fn`.
        **kwargs: `val_dataset` and `callbacks` go to `fit`; anything else is a
            keyword of the recipe: `max_steps`, `learning_rate`, `batch_size`,
            `max_sequence_length`, `precision`, any key whose name occurs once, or a
            whole section (`grpo={...}`).

    Returns:
        Steps, metrics, and the paths of checkpoint, logs and exported model.

    Raises:
        ConfigurationError: an argument is missing or wrong.

    Example:
        >>> import nemo_rl
        >>> result = nemo_rl.train(  # doctest: +SKIP
        ...     model="smollm2-135m-instruct",
        ...     dataset="arithmetic",
        ...     reward_fn=lambda prompt, response: float(response.strip() == "4"),
        ...     max_steps=10,
        ... )
    """
    fit_arguments = {name: kwargs.pop(name, None) for name in _FIT_ARGUMENTS}
    _validate_inputs(model, dataset, reward_fn, algorithm=algorithm, kwargs=kwargs)
    if isinstance(reward_fn, str):
        kwargs["env"] = merge(plain(kwargs.get("env") or {}), {"reward_fn": reward_fn})
        reward_fn = None
    trainer = _create_trainer_for_algorithm(str(model), algorithm, kwargs)
    return trainer.fit(dataset=dataset, reward_fn=reward_fn, **fit_arguments)


def _validate_inputs(
    model: Any,
    dataset: Any,
    reward_fn: Any,
    *,
    algorithm: str,
    kwargs: Mapping[str, Any],
) -> None:
    needs_reward = getattr(trainer_class(algorithm), "needs_reward", None)
    if not isinstance(model, (str, Path)) or not str(model).strip():
        raise ConfigurationError(
            f"model={model!r}: expected a folder or a model's name, "
            "for example 'smollm2-135m-instruct'."
        )
    data = plain(kwargs.get("data") or {})
    named = [d.get(key) for d in (data, kwargs) for key in ("dataset_name", "mixture")]
    if dataset is None and not any(named):
        raise ConfigurationError(
            "dataset is missing: pass a name, a path, a list of rows or a dataset."
        )
    if (
        reward_fn is not None
        and not callable(reward_fn)
        and not isinstance(reward_fn, (str, Mapping))
        and not hasattr(reward_fn, "step")
    ):
        raise ConfigurationError(
            f"reward_fn={reward_fn!r} is not callable. Expected a function "
            "(prompt, response) -> float, or 'module:function'."
        )
    if reward_fn is not None and needs_reward is False:
        raise ConfigurationError(
            f"algorithm {algorithm!r} learns from given answers and scores nothing: "
            "leave reward_fn out, or use algorithm 'grpo'."
        )
    if (
        reward_fn is None
        and needs_reward
        and not isinstance(dataset, (str, type(None)))
    ):
        env = plain(kwargs.get("env") or {})
        if not any(env.get(key) for key in ("name", "reward_fn", *SECTIONS)):
            raise ConfigurationError(
                "reward_fn is missing: these rows bring no reward of their own. Pass "
                "a function (prompt, response) -> float."
            )


def _create_trainer_for_algorithm(
    model: str, algorithm: str, kwargs: dict[str, Any]
) -> Any:
    """Build the config and its trainer.

    A trainer class of one's own builds its config itself, in its `from_pretrained`.
    """
    if is_builtin(algorithm):
        return create_trainer(build_config(model, algorithm, **kwargs))
    return trainer_class(algorithm).from_pretrained(model, **kwargs)
