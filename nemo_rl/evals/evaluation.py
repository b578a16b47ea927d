"""evaluate(): a model answers the prompts of a data set, and the answers are counted.

Generation, prompts and scoring are those of training; nothing here samples a token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nemo_rl.config.base import merge, plain
from nemo_rl.config.keywords import build_mapping
from nemo_rl.config.validation import validate_master
from nemo_rl.data.module import DataModule
from nemo_rl.data.sources import open_rows
from nemo_rl.data.tokenizer import load_tokenizer
from nemo_rl.distributed.batched_data_dict import BatchedDataDict
from nemo_rl.environments.factory import make_environment
from nemo_rl.evals.answers import Listener, answer_rows, estimates
from nemo_rl.evals.config import EvalMasterConfig
from nemo_rl.evals.report import EvalResult, write_report
from nemo_rl.experience.recorder import RolloutRecorder
from nemo_rl.experience.rollout import RolloutEngine, repeat_prompts
from nemo_rl.infra.assets import resolve_model
from nemo_rl.models.policy.interfaces import PolicyInterface
from nemo_rl.models.sources import ModelSource, find_model, opened_policy

Progress = Callable[[int, int], None]
"""Called with the prompts answered so far, and all of them."""


def evaluate(
    model: str | Path,
    dataset: Any = None,
    reward_fn: Callable[..., Any] | str | None = None,
    *,
    output: Path | str | None = None,
    with_policy: PolicyInterface | None = None,
    progress: Progress | None = None,
    recipe_dir: Path | str | None = None,
    **keywords: Any,
) -> EvalResult:
    """Measure a model on a data set.

    Args:
        model: Hugging Face folder, hub name, packaged model; or a training
            checkpoint, or a folder of them, of which the newest is meant.
        dataset: registered name, file, folder, hub name, list of rows or
            ``datasets.Dataset``; of a registered one the validation split, unless
            ``dataset_kwargs`` names another. None where ``data={...}`` names one.
        reward_fn: as for ``nemo_rl.train``; None where the data set brings its own.
        output: folder for answers.jsonl, summary.json and report.md; None writes
            nothing.
        with_policy: what answers in place of a policy built here; `model` is then
            where its tokenizer is. It is not shut down.
        progress: told after every batch.
        recipe_dir: where relative files and "module:function" are looked for first.
        **keywords: of the eval section (``num_samples``, ``greedy``, ``k``,
            ``max_prompts``, ...), of a recipe (``temperature``, ``max_new_tokens``,
            ``tensor_parallel_size``, ``cpu_workers_per_node``), or whole sections.
            ``max_total_sequence_length`` is the model's own unless given.

    Raises:
        NemoRLError: an argument is wrong (before any worker is started), or the reward
            or a worker failed.

    Example:
        >>> import nemo_rl.evals
        >>> nemo_rl.evals.evaluate(  # doctest: +SKIP
        ...     "smollm2-135m-instruct", "arithmetic", num_samples=8, max_new_tokens=8
        ... )["pass@1"]
    """
    config = _config(model, dataset, reward_fn, keywords)
    source = find_model(config.policy.model_name)
    _settle_length(config, source)
    validate_master(config)
    tokenizer = _tokenizer(config, source)
    rows = None if _is_name(dataset) else dataset
    data = _open_data(rows, config, tokenizer, recipe_dir)
    listener = Listener(
        make_environment(
            config.env,
            reward_fn=None if isinstance(reward_fn, str) else reward_fn,
            default=data.default_environment,
            search_dir=recipe_dir,
        )
    )
    facts = _facts(config, source)
    folder = None if output is None else Path(output).expanduser().absolute()
    with ExitStack() as stack:
        stack.callback(listener.shutdown)
        recorder = None
        if folder is not None:
            recorder = RolloutRecorder(folder / "answers.jsonl")
            stack.callback(recorder.close)
        policy = with_policy or stack.enter_context(
            opened_policy(
                source, config, tokenizer, seed=config.eval.seed, scratch=folder
            )
        )
        engine = _engine(policy, listener, tokenizer, config)
        answers = []
        for rollouts in _rollouts(engine, data, config, progress or _silent):
            found = answer_rows(rollouts, listener.answers, config.eval)
            answers += found
            if recorder is not None:
                recorder.record(source.step or 0, found, split="eval")
    facts["num_prompts"] = len(answers) // config.eval.num_samples
    result = EvalResult(estimates(answers, config.eval), facts, answers, folder)
    write_report(result)
    return result


def _config(
    model: str | Path, dataset: Any, reward_fn: Any, keywords: dict[str, Any]
) -> EvalMasterConfig:
    """Build the configuration; a data set and a reward by name are parts of it."""
    for section, key, value in (
        ("data", "dataset_name", str(dataset) if _is_name(dataset) else None),
        ("env", "reward_fn", reward_fn if isinstance(reward_fn, str) else None),
    ):
        if value is not None:
            given = plain(keywords.get(section) or {})
            keywords = {**keywords, section: merge(given, {key: value})}
    return EvalMasterConfig.from_mapping(
        build_mapping(EvalMasterConfig, str(model), "eval", **keywords)
    )


def _is_name(dataset: Any) -> bool:
    return isinstance(dataset, (str, Path))


def _settle_length(config: EvalMasterConfig, source: ModelSource) -> None:
    """Let prompt and response together be as long as the model allows."""
    if "max_total_sequence_length" not in config.policy.model_fields_set:
        shape = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
        positions = shape.get("max_position_embeddings")
        if positions is not None:
            config.policy.max_total_sequence_length = positions


def _tokenizer(config: EvalMasterConfig, source: ModelSource) -> Any:
    named = config.policy.tokenizer
    folder = resolve_model(named.name) if named.name else source.folder
    return load_tokenizer(folder, chat_template=named.chat_template)


def _open_data(
    dataset: Any, config: EvalMasterConfig, tokenizer: Any, recipe_dir: Any
) -> DataModule:
    """Return a module whose validation rows are the rows to ask."""
    section = config.data
    name, arguments = section.dataset_name, section.dataset_kwargs
    rows = open_rows(dataset, name, arguments, recipe_dir, split="validation")
    return _Questions(
        rows,
        tokenizer,
        section,
        seed=config.eval.seed,
        max_length=config.max_prompt_length,
        val_dataset=rows,
        search_dir=recipe_dir,
    )


class _Questions(DataModule):
    """Rows that are only asked: no training could have seen them."""

    def _warn_of_overlap(self) -> None:
        """Both sides are the same rows."""


def _engine(
    policy: PolicyInterface, environment: Any, tokenizer: Any, config: EvalMasterConfig
) -> RolloutEngine:
    return RolloutEngine(
        policy,
        environment,
        tokenizer,
        seed=config.eval.seed,
        max_turns=config.eval.max_turns,
        max_total_length=config.policy.max_total_sequence_length,
    )


def _rollouts(
    engine: RolloutEngine, data: DataModule, config: EvalMasterConfig, told: Progress
) -> Iterator[BatchedDataDict]:
    """Each batch of prompts with its answers, those to one prompt side by side."""
    section = config.eval
    total = min(len(data), section.max_prompts or len(data))
    told(0, total)
    batches = data.validation_batches(section.max_prompts, section.batch_size)
    done = 0
    for number, batch in enumerate(batches):
        prompts = repeat_prompts(batch, section.num_samples)
        rollouts, _ = engine.run(prompts, step=number, greedy=section.greedy)
        done += batch.size
        told(done, total)
        yield rollouts


def _facts(config: EvalMasterConfig, source: ModelSource) -> dict[str, Any]:
    """What is asked of what, for whoever reads the numbers later."""
    policy, section, sampling = config.policy, config.eval, config.policy.generation
    return {
        "model": policy.model_name,
        "step": source.step,
        "dataset": config.data.dataset_name or "rows given in code",
        "dataset_kwargs": config.data.dataset_kwargs,
        "num_samples": section.num_samples,
        "max_turns": section.max_turns,
        "temperature": 0.0 if section.greedy else sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_new_tokens": sampling.max_new_tokens,
        "precision": policy.precision,
        "threshold": section.threshold,
        "answer_pattern": section.answer_pattern,
        "confidence": section.confidence,
        "seed": section.seed,
    }


def _silent(done: int, total: int) -> None:
    """Tell nobody."""
