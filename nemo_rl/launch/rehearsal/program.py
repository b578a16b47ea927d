"""A program: a recipe's stages one after the other, on a shrunken random model.

It raises what a run would raise. What happens is told as one JSON object per line on
its standard output; everything that libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from nemo_rl.api.functional import algorithm_of, load_recipe, to_config, trainer_class
from nemo_rl.config.backends import generates_apart
from nemo_rl.config.master import MasterConfig
from nemo_rl.launch.rehearsal import model as models
from nemo_rl.launch.rehearsal.facts import (
    require_all,
    size_of,
    sizes,
    versions,
    vllm_here,
)
from nemo_rl.launch.rehearsal.plan import STEPS, Plan, make_plan, models_of
from nemo_rl.launch.rehearsal.shrink import HEAD_DIM, VLLM_HEAD_DIM
from nemo_rl.launch.rehearsal.staged import (
    Staged,
    alone,
    check_first,
    check_resumed,
    policy_here,
    words_of,
)
from nemo_rl.launch.rehearsal.stages import Stages, told_on_stdout
from nemo_rl.utils.exceptions import ConfigurationError, NemoRLError
from nemo_rl.utils.imports import import_object

PLAYED = "rehearsal.yaml"
"""The recipe that was played, in the rehearsal's folder."""


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
        stages.done("config", sizes(config))
        with stages.stage("libraries"):
            require_all(config)
            cls = trainer_class(algorithm_of(config))
        stages.done("libraries", versions("torch", "transformers", "megatron-core"))
        try:
            plan, detail = self._prepare(config)
        except ConfigurationError as error:
            if algorithm_of(config) != "eval":
                self._without_a_model(config, error)
            raise
        with stages.stage("model"):
            text = yaml.safe_dump(plan.first, sort_keys=False)
            (self.folder / PLAYED).write_text(text, encoding="utf-8")
        stages.done("model", detail)
        stages.tell({"differs": list(plan.differs)})
        if algorithm_of(config) == "eval":
            self._answer(cls, self._config(plan.first, config))
        else:
            self._train(cls, plan, config)

    def _prepare(self, config: MasterConfig) -> tuple[Plan, str]:
        """Find the recipe's models, write small ones; return plan and words."""
        with self.stages.stage("model"):
            return self._prepared(config)

    def _prepared(self, config: MasterConfig) -> tuple[Plan, str]:
        small, words = {}, []
        vllm = vllm_here() and config.samples and generates_apart(config.policy)
        evaluates = algorithm_of(config) == "eval"
        for number, (name, kind) in enumerate(models_of(config).items()):
            found = models.find(self.stand_in or name, any_checkpoint=evaluates)
            main = name == config.policy.model_name
            overrides = dict(config.policy.hf_config_overrides) if main else {}
            if self.stand_in:
                # Its own limit says nothing about the recipe's model.
                length = config.policy.max_total_sequence_length
                overrides["max_position_embeddings"] = length
                overrides |= {"num_labels": 1} if kind == "score" else {}
            elif main:
                models.check(found, config)
            target = self.folder / f"model-{number}"
            # A teacher of the same shape must not agree with its pupil.
            shape = models.write_small(
                found,
                target,
                kind=kind,
                overrides=overrides,
                seed=number,
                head_dim=VLLM_HEAD_DIM if vllm else HEAD_DIM,
            )
            small[name] = str(target)
            layers, width = shape.get("num_hidden_layers"), shape.get("hidden_size")
            words.append(f"{found.name}: {found.shape}; {found.weights}")
            words.append(f"played by {layers} layers of {width} channels, random")
        named = config.policy.tokenizer.name
        if named is not None:
            found = models.find(self.stand_in or named)
            models.copy_light(found.folder, self.folder / "tokenizer")
            named = str(self.folder / "tokenizer")
        plan = make_plan(
            config, folder=self.folder, small=small, tokenizer=named, vllm=vllm
        )
        if self.stand_in:
            phrase = (
                f"{self.stand_in} stands in for {', '.join(small)}: the recipe's own "
                "tokenizer, chat template and shape are NOT rehearsed"
            )
            plan = replace(plan, differs=(phrase, *plan.differs))
        return plan, "; ".join(words)

    def _without_a_model(self, config: MasterConfig, error: NemoRLError) -> None:
        """Look at what needs no model: rows as they are, and the environment."""
        stages, place = self.stages, config.recipe_dir
        failed = stages.failed
        try:
            with stages.stage("data"):
                open_data = import_object("nemo_rl.data.sources:open_data")
                rows, _ = open_data(config.data, search_dir=place)
            text = f"{len(rows):,} rows; not through tokenizer and template"
            stages.done("data", text)
            with stages.stage("environment"):
                self._make_environment(config, rows)
        except NemoRLError as another:
            stages.failed = failed
            raise ConfigurationError(f"{error}\nAnd: {another}") from another
        stages.failed = failed

    def _make_environment(self, config: MasterConfig, rows: Any) -> None:
        env, default = config.env, getattr(rows, "default_environment", None)
        if not (config.samples and (env.reward_fn or env.chosen or default)):
            return
        make = import_object("nemo_rl.environments.factory:make_environment")
        made = make(env, default=default, search_dir=config.recipe_dir)
        end = getattr(made, "shutdown", None)
        if end is not None:
            end()
        self.stages.done("environment", "made; scored nothing")

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
            check_first(result)
        self._report(result)
        if plan.second is None:
            why = "the recipe does not resume, or has no checkpoints"
            stages.tell({"left": "resume", "detail": why})
        else:
            second = self._made(staged, self._config(plan.second, full))
            with stages.whole("resume"):
                result = second.fit()
                check_resumed(second, result)
            stages.done("resume", f"after step {STEPS}, and step {STEPS + 1} trained")
        if result.hf_export_path is None:
            text = "off: checkpointing.enabled, checkpointing.export_hf"
            stages.tell({"left": "export", "detail": text})
        else:
            stages.done("export", size_of(result.hf_export_path))

    def _made(self, cls: type, config: MasterConfig) -> Any:
        trainer = cls(config)
        trainer.run_dir = self.folder
        return trainer

    def _report(self, result: Any) -> None:
        """Report what the first start came to."""
        stages, metrics = self.stages, result.metrics
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
            stages.done("checkpoint", size_of(result.checkpoint_path))

    def _answer(self, cls: type, config: MasterConfig) -> None:
        """Play an evaluation."""
        stages, policy, named = self.stages, None, config.policy.tokenizer
        with stages.stage("tokenizer"):
            load = import_object("nemo_rl.data.tokenizer:load_tokenizer")
            folder = named.name or config.policy.model_name
            tokenizer = load(folder, chat_template=named.chat_template)
        stages.done("tokenizer", words_of(tokenizer))
        if alone(config):
            with stages.stage("workers"):
                policy = policy_here(config, tokenizer)
            stages.done("workers", "in this process")
        else:
            stages.tell({"left": "workers", "detail": "over Ray, with the answers"})
        try:
            with stages.stage("answers"):
                result = self._made(cls, config).fit(with_policy=policy)
        finally:
            if policy is not None:
                policy.shutdown()
        text = ", ".join(f"{k} {v:.3g}" for k, v in list(result.metrics.items())[:2])
        stages.done("answers", f"rows, environment, report; {text}")


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
