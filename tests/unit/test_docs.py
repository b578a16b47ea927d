"""docs/: what is generated is up to date, what is promised is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from nemo_rl.algorithms.grpo.config import GRPOMasterConfig
from nemo_rl.config.availability import UNAVAILABLE
from nemo_rl.config.loading import apply_overrides
from nemo_rl.config.policy import PolicyConfig
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
