"""docs/: what is generated is up to date, what is promised is there."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml

from nemo_rl.algorithms.grpo.config import GRPOMasterConfig
from nemo_rl.config.availability import UNAVAILABLE
from nemo_rl.config.keywords import build_mapping
from nemo_rl.config.loading import apply_overrides
from nemo_rl.config.policy import PolicyConfig
from nemo_rl.config.services import LoggerConfig
from nemo_rl.evals import EvalConfig, EvalMasterConfig
from nemo_rl.evals import cli as evals_cli
from nemo_rl.infra.monitor import SystemReading
from nemo_rl.models import diagnose
from nemo_rl.models.validation import validate_log_probability_consistency
from nemo_rl.trainers.callbacks import CallbackList
from nemo_rl.utils.imports import import_object

ROOT = Path(__file__).parents[2]


def test_configuration_is_what_the_classes_say() -> None:
    render = import_object("render_configuration:render", search_dir=ROOT / "docs")
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == render(), "write it anew: make docs"


def test_the_readme_trains_with_keywords_that_exist() -> None:
    from nemo_rl.api.functional import build_config

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    call = re.search(r"nemo_rl\.train\((.*?)\n\)", readme, flags=re.S).group(1)
    given = eval(f"dict({call})")  # noqa: S307 - our own page
    model, rows, reward = (given.pop(k) for k in ("model", "dataset", "reward_fn"))
    config = build_config(model, **given)
    assert len(rows) >= config.grpo.num_prompts_per_step
    assert reward("", "APPLE") > reward("", "Apple") > reward("", "apple") == 0.0


@pytest.mark.parametrize("page", ["README.md", "docs/configuration.md"])
def test_overrides_that_are_shown_are_valid(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    shown = re.findall(r"(?<=\s)(?:grpo|policy)\.[a-z_.]+=[\w.-]+", text)
    assert shown
    values = {"policy": {"model_name": "m"}, "cluster": {"gpus_per_node": 1}}
    GRPOMasterConfig.from_mapping(apply_overrides(values, shown))


def test_make_lists_every_command_that_the_pages_name() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.M))
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        text = page.read_text(encoding="utf-8")
        named = set(re.findall(r"(?:`|^)make ([a-z][a-z-]+)", text, flags=re.M))
        assert named <= targets, page.name


def test_versions_are_pinned_once() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    versions = (ROOT / "containers" / "versions.env").read_text()
    for package in ("torch", "megatron-core", "ray", "transformers"):
        name = package.replace("-", "_").upper()
        assert f"{name}_VERSION={pins[package]}\n" in versions
    makefile = (ROOT / "Makefile").read_text()
    assert f"torch=={pins['torch']} " in makefile


def test_the_page_on_backends_names_what_is_there() -> None:
    """Its engines are trained by tests/functional/test_own_engines.py."""
    import ast

    page = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                for name in node.names:
                    assert import_object(f"{node.module}:{name.name}") is not None
    (recipe, *_) = re.findall(r"```yaml\n(.*?)```", page, flags=re.S)
    values = yaml.safe_load(recipe)
    assert values.pop("defaults") == "base/grpo.yaml"
    policy = PolicyConfig.from_mapping({"model_name": "m", **values["policy"]})
    assert policy.dtensor_cfg.tensor_parallel_size == 2
    for section, field in UNAVAILABLE:
        if section == "DTensorConfig":
            assert f"`{field}`" in page


def commands(page: str, program: str) -> list[list[str]]:
    """The arguments of every line of a page that calls a program."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = re.findall(rf"^{program} (.+)$", text, flags=re.M)
    return [shlex.split(line, comments=True) for line in lines]


def test_evaluations_that_are_shown_can_be_asked_for() -> None:
    shown = commands("docs/evaluation.md", "nemo-rl eval")
    assert len(shown) == 5
    for arguments in shown:
        options = evals_cli.parse(arguments, "nemo-rl eval")
        keywords = evals_cli.keywords_of(options)
        mapping = build_mapping(EvalMasterConfig, options.model, "eval", **keywords)
        EvalMasterConfig.from_mapping(mapping)
        assert options.dataset


def test_every_key_and_flag_of_evaluation_is_on_its_page() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (?:`(--[\w-]+)`)? ?\|", page, flags=re.M)
    assert [key for key, _ in rows] == list(EvalConfig.model_fields)
    help_text = io.StringIO()
    with contextlib.redirect_stdout(help_text), pytest.raises(SystemExit):
        evals_cli.parse(["--help"], "nemo-rl eval")
    flags = {*re.findall(r"^  (--[\w-]+)", help_text.getvalue(), flags=re.M)}
    assert {flag for _, flag in rows if flag} < flags
    assert {f for f in flags - {"--output", "--debug"} if f"`{f}`" not in page} == set()


def test_diagnoses_that_are_shown_can_be_asked_for() -> None:
    for arguments in commands("docs/evaluation.md", "nemo-rl diagnose"):
        assert diagnose.parse(arguments, "nemo-rl diagnose").model


def test_the_page_on_evaluation_calls_functions_that_are_there() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    call = re.search(r"evals\.evaluate\((.*?)\n\)", page, flags=re.S).group(1)
    given = eval(f"dict({call})")  # noqa: S307 - our own page
    model, rows, reward = (given.pop(k) for k in ("model", "dataset", "reward_fn"))
    mapping = build_mapping(EvalMasterConfig, model, "eval", **given)
    assert EvalMasterConfig.from_mapping(mapping).eval.num_samples == 4
    assert reward("", " 4.", rows[0]["answer"]) == 1.0
    call = re.search(r"_consistency\((.*?)\n\)", page, flags=re.S).group(1)
    names = re.findall(r"^ +(\w+)=", call, flags=re.M)
    inspect.signature(validate_log_probability_consistency).bind(**dict.fromkeys(names))


def test_the_page_on_logging_is_a_section_and_callbacks() -> None:
    page = (ROOT / "docs" / "logging.md").read_text(encoding="utf-8")
    section = yaml.safe_load(re.search(r"```yaml\n(.*?)```", page, flags=re.S).group(1))
    config = LoggerConfig.from_mapping(section["logger"])
    assert config.monitor_system and config.wandb.mode == "offline"
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", page, flags=re.S).group(1), names)  # noqa: S102
    assert len(CallbackList(names["callbacks"])) == 3
    read = SystemReading(lambda: [os.getpid()])
    tags = {*read(), *read()}
    assert {tag for tag in tags if f"`{tag}`" in page} == tags
