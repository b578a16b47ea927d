"""The rules of ARCHITECTURE.md and CONTRIBUTING.md that a program can check."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from nemo_rl._aliases import ALIASES

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "nemo_rl"

MAX_LINES = (
    *((name.replace(".", "/") + ".py", 10) for name in ALIASES),
    ("nemo_rl/algorithms/*/loss.py", 200),
    ("nemo_rl/algorithms/*/config.py", 200),
    ("nemo_rl/config/*.py", 200),
    ("nemo_rl/utils/*.py", 200),
    ("nemo_rl/backends/*base.py", 400),
    ("nemo_rl/backends/*.py", 500),
    ("nemo_rl/trainers/base.py", 500),
    ("nemo_rl/*.py", 300),
    ("slurm/*.sh", 150),
)
"""First pattern that fits -> most lines."""
MAX_FUNCTION_LINES = 80
MAX_PARAMETERS = 8
MAX_TRAIN_STEP_LINES = 25

READS_THE_ENVIRONMENT = {
    "nemo_rl/distributed/rank.py",
    "nemo_rl/launch/site.py",
    "nemo_rl/utils/env.py",
}

TESTED_ELSEWHERE = {
    "algorithms/distillation/trainer.py": "functional/test_learning.py",
    "algorithms/dpo/trainer.py": "functional/test_learning.py",
    "algorithms/grpo/trainer.py": "functional/test_learning.py",
    "algorithms/rm/trainer.py": "functional/test_learning.py",
    "algorithms/sft/trainer.py": "functional/test_learning.py",
    "backends/generation/base.py": "unit/backends/test_factory.py",
    "backends/training/base.py": "unit/backends/test_factory.py",
    "backends/generation/decoding.py": "unit/backends/generation/test_megatron.py",
    "backends/generation/hf.py": "functional/test_dtensor.py",
    "backends/training/checkpoint_files.py": (
        "unit/backends/training/megatron/test_checkpoint.py"
    ),
    "backends/training/dtensor/backend.py": "functional/test_dtensor.py",
    "backends/training/dtensor/optimizer.py": "functional/test_dtensor.py",
    "backends/training/dtensor/step.py": "functional/test_dtensor.py",
    "backends/training/generators.py": (
        "unit/backends/training/megatron/test_checkpoint.py"
    ),
    "backends/training/hf_folder.py": (
        "unit/backends/training/megatron/test_export.py"
    ),
    "backends/training/megatron/optimizer.py": "functional/test_parity.py",
    "backends/training/megatron/step.py": "functional/test_parity.py",
    "backends/training/outputs.py": "functional/test_parity.py",
    "backends/training/schedule.py": "unit/backends/training/megatron/test_backend.py",
    "backends/training/megatron/gemma_layers.py": "functional/test_families.py",
    "backends/training/megatron/transformer.py": (
        "unit/backends/training/megatron/test_model.py"
    ),
    "distributed/interfaces.py": "unit/distributed/test_local.py",
    "experience/sampler.py": "unit/experience/test_ahead.py",
    "trainers/sampling.py": "functional/test_learning.py",
    "trainers/setup.py": "unit/trainers/test_base.py",
    "environments/sandbox_child.py": "unit/environments/test_sandbox.py",
    "launch/local_ray.py": "slurm/test_sharing.py",
    "launch/preflight/allreduce.py": "unit/launch/preflight/test_collective.py",
    "launch/preflight/head.py": "slurm/test_preflight.py",
    "launch/preflight/node.py": "slurm/test_preflight.py",
    "launch/rehearsal/program.py": "functional/test_rehearsal.py",
    "models/generation/vllm.py": "functional/test_vllm_policy.py",
    "models/generation/vllm_worker.py": "functional/test_vllm.py",
    "models/policy/engines.py": "functional/test_vllm_policy.py",
    "models/policy/synced_generation.py": "functional/test_vllm_policy.py",
    "models/policy/interfaces.py": "unit/algorithms/test_policy_first.py",
    "models/policy/weight_sender.py": "functional/test_refit.py",
}
"""Module of the package -> test file that covers it, where that is not its mirror."""
TESTED_TOGETHER = {
    "backends/generation/vllm": "functional/test_vllm.py",
    "backends/refit": "unit/backends/refit/test_transports.py",
    "converters/families": "unit/converters/test_families.py",
    "launch/runs": "unit/launch/test_runs.py",
}
"""Folder of the package -> test file that covers each of its modules alike."""

# In two parts, so that this file is not found itself.
MARKS = re.compile("TO" r"DO|FIX" r"ME|XX" r"X\b|HA" r"CK\b")
OWN_PATHS = re.compile("/wo" r"rk/|/tmp/d" r"ev|/home/\w+/|/Us" r"ers/\w+/")


def tracked() -> list[Path]:
    """Files of the project: what git knows or would not ignore."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"not a git checkout: {done.stderr}")
    files = [ROOT / line for line in done.stdout.splitlines()]
    return [path for path in files if path.is_file()]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


FILES = tracked()
MODULES = [path for path in FILES if path.suffix == ".py" and PACKAGE in path.parents]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
FUNCTIONS = [
    (path, node)
    for path, tree in TREES.items()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
]


def text_files() -> Iterator[tuple[Path, str]]:
    for path in FILES:
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def test_no_module_is_too_long() -> None:
    long = []
    for path in FILES:
        for pattern, limit in MAX_LINES:
            if fnmatch(name(path), pattern):
                count = len(path.read_text(encoding="utf-8").splitlines())
                if count > limit:
                    long.append(f"{name(path)}: {count} lines, at most {limit}")
                break
    assert not long, "split by what it does:\n" + "\n".join(long)


def test_no_function_is_too_long() -> None:
    long = [
        f"{name(path)}:{node.lineno} {node.name}: {count} lines"
        for path, node in FUNCTIONS
        if (count := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert not long, f"more than {MAX_FUNCTION_LINES}:\n" + "\n".join(long)


def test_no_function_has_too_many_parameters() -> None:
    wide = []
    for path, node in FUNCTIONS:
        arguments = node.args
        line = path.read_text(encoding="utf-8").splitlines()[node.lineno - 1]
        if "noqa: PLR0913 - " in line:  # with its reason: somebody else's signature
            continue
        names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        count = len([a for a in names if a.arg not in ("self", "cls")])
        if count > MAX_PARAMETERS:
            wide.append(f"{name(path)}:{node.lineno} {node.name}: {count}")
    assert not wide, f"more than {MAX_PARAMETERS}:\n" + "\n".join(wide)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(TREES[path])
    assert docstring, "no docstring"
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert len(first) <= 88 and docstring.splitlines()[0].endswith((".", ":", "?"))


def test_the_training_step_reads_as_the_algorithm() -> None:
    steps = [
        (path, node)
        for path, node in FUNCTIONS
        if node.name == "_train_step" and "algorithms" in path.parts
    ]
    assert steps
    for path, node in steps:
        count = node.end_lineno - node.lineno + 1
        assert count <= MAX_TRAIN_STEP_LINES, f"{name(path)}: {count} lines"


def mirror(path: Path) -> Path:
    inside = path.relative_to(PACKAGE)
    stem = inside.stem.strip("_")
    return ROOT / "tests" / "unit" / inside.parent / f"test_{stem}.py"


def test_every_module_has_its_test() -> None:
    aliases = {ROOT / (module.replace(".", "/") + ".py") for module in ALIASES}
    missing = []
    for path in MODULES:
        inside = path.relative_to(PACKAGE).as_posix()
        if path.name == "__init__.py" or path in aliases or inside in TESTED_ELSEWHERE:
            continue
        if Path(inside).parent.as_posix() in TESTED_TOGETHER:
            continue
        if not mirror(path).is_file():
            missing.append(f"nemo_rl/{inside}: no {name(mirror(path))}")
    assert not missing, "\n".join(missing)


def test_the_table_of_other_tests_is_true() -> None:
    for module, test in (TESTED_ELSEWHERE | TESTED_TOGETHER).items():
        assert (PACKAGE / module).exists(), module
        assert (ROOT / "tests" / test).is_file(), test


def test_the_environment_is_read_in_three_places() -> None:
    found = set()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in (
                "environ",
                "environb",
                "getenv",
                "putenv",
                "unsetenv",
            ):
                found.add(name(path))
    assert found <= READS_THE_ENVIRONMENT, found - READS_THE_ENVIRONMENT


def test_no_exception_is_caught_blindly() -> None:
    blind = [
        f"{name(path)}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in BLIND)
        and not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
        and "BLE001 -" not in path.read_text().splitlines()[node.lineno - 1]
    ]
    assert not blind, blind


BLIND = ("Exception", "BaseException")


def test_nothing_is_left_undone_and_no_path_is_ones_own() -> None:
    found = [
        f"{name(path)}:{number}: {line.strip()[:80]}"
        for path, text in text_files()
        for number, line in enumerate(text.splitlines(), start=1)
        if MARKS.search(line) or OWN_PATHS.search(line)
    ]
    assert not found, "\n".join(found)


def test_imports_point_down() -> None:
    from importlinter import configuration
    from importlinter.application.use_cases import lint_imports

    configuration.configure()
    config = str(ROOT / "pyproject.toml")
    assert lint_imports(config_filename=config, cache_dir=None, no_logo=True)


LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, flags=re.M)
    kept = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in kept}


def test_every_link_resolves() -> None:
    broken = []
    for path in FILES:
        if path.suffix != ".md":
            continue
        for link in LINK.findall(path.read_text(encoding="utf-8")):
            if link.startswith(("http://", "https://", "mailto:")):
                continue
            target, _, anchor = link.partition("#")
            found = (path.parent / target).resolve() if target else path
            if not found.exists():
                broken.append(f"{name(path)}: {link}")
            elif anchor and anchor not in anchors(found.read_text(encoding="utf-8")):
                broken.append(f"{name(path)}: no heading for {link}")
    assert not broken, "\n".join(broken)
