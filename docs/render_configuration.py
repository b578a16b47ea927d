"""Writes configuration.md from the configuration classes: `make docs`.

A test compares the file with what this renders; edit the classes, not the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from nemo_rl.algorithms.distillation.config import DistillationMasterConfig
from nemo_rl.algorithms.dpo.config import DPOMasterConfig
from nemo_rl.algorithms.grpo.config import GRPOMasterConfig
from nemo_rl.algorithms.rm.config import RMMasterConfig
from nemo_rl.algorithms.sft.config import SFTMasterConfig
from nemo_rl.config.availability import UNAVAILABLE
from nemo_rl.config.keywords import KEYWORDS
from nemo_rl.config.messages import section_in
from nemo_rl.utils.env import VARIABLES

PAGE = Path(__file__).with_name("configuration.md")
UNUSED = ("Accepted", "Not available", "Read only by the vLLM", "Always ")

HEAD = """\
# Configuration

<!-- Written by docs/render_configuration.py; edit the classes in nemo_rl/config. -->

A recipe is a YAML file, or the same as nested dicts in Python. `defaults:` names its
parents; a key it does not give has the default below. `section.key=value` after a
recipe on the command line changes one value.

```bash
python -m nemo_rl.launch my_recipe.yaml policy.learning_rate=2e-6 grpo.max_num_steps=50
```

A key that does not exist, a value of the wrong kind and sizes that do not fit together
are refused before anything starts; every problem is listed at once.

Rules between sections:

- `cluster.num_nodes` x workers per node = tensor x pipeline x data parallel size; the
  last is what remains. Workers per node are `gpus_per_node`, or
  `cpu_workers_per_node` where that is 0.
- `grpo.num_prompts_per_step` x `grpo.num_generations_per_prompt` is a multiple of
  `policy.train_global_batch_size`: that many updates are made per step.
- `policy.train_global_batch_size` is a multiple of `policy.train_micro_batch_size` x
  data parallel size.
- `tensor_model_parallel_size` divides the model's attention heads and key-value heads,
  `pipeline_model_parallel_size` its layers.

`null` is written `None` in Python.
"""

KEYWORDS_HEAD = """\
## Keywords

`nemo_rl.train(...)` and `GRPOTrainer.from_pretrained(...)` take these short names, any
key above whose name occurs once, and whole sections (`grpo={...}`).
`train_global_batch_size` follows `batch_size` x `num_generations_per_prompt` unless it
is given.
"""

REFUSED_HEAD = """\
## Known and refused

Recipes from elsewhere may have these keys. Switched off they are accepted; switched on
they are refused, with what to use instead.
"""

IGNORED_HEAD = """\
## Accepted without effect

Recipes from elsewhere have these keys too; here something else decides.
"""


def render() -> str:
    """Return the whole page."""
    parts = [HEAD]
    unused: dict[str, str] = {}
    fields = dict(GRPOMasterConfig.model_fields)
    for cls in (
        SFTMasterConfig,
        DPOMasterConfig,
        RMMasterConfig,
        DistillationMasterConfig,
    ):
        fields |= {k: v for k, v in cls.model_fields.items() if k not in fields}
    for name, field in fields.items():
        section = section_in(field.annotation)
        if section is not None:
            parts.append(f"## {name}\n\n{_words(field.description)}\n")
            parts.append(_table(section, f"{name}.", unused))
    parts.append(KEYWORDS_HEAD)
    lines = ["| keyword | key |", "|---|---|"]
    lines += [
        f"| `{keyword}` | `{path.format(algorithm='grpo')}` |"
        for keyword, path in KEYWORDS.items()
    ]
    parts.append("\n".join(lines) + "\n")
    parts.append(REFUSED_HEAD)
    parts.append(_refused())
    parts.append(IGNORED_HEAD)
    lines = ["| key | why |", "|---|---|"]
    lines += [
        f"| `{path}` | {_cell(_words(text))} |"
        for path, text in unused.items()
        if not text.startswith("Not available")
    ]
    parts.append("\n".join(lines) + "\n")
    parts.append("## Environment variables\n")
    lines = ["| variable | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {_cell(text)} |" for name, text in VARIABLES.items()]
    parts.append("\n".join(lines) + "\n")
    parts.append("Those of a site are in [launch/README.md](../launch/README.md).\n")
    return "\n".join(parts)


def _table(section: Any, prefix: str, unused: dict[str, str]) -> str:
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for path, field in _leaves(section, prefix):
        text = field.description or ""
        if text.startswith(UNUSED):
            unused[path] = text
            continue
        key = path.removeprefix(prefix)
        lines.append(f"| `{key}` | {_default(field)} | {_cell(_words(text))} |")
    return "\n".join(lines) + "\n"


def _leaves(section: Any, prefix: str) -> list[tuple[str, Any]]:
    found = []
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        unavailable = (field.description or "").startswith(UNUSED)
        if inner is None or unavailable:
            found.append((f"{prefix}{name}", field))
        else:
            found += _leaves(inner, f"{prefix}{name}.")
    return found


def _default(field: Any) -> str:
    value = field.default
    if value is PydanticUndefined:
        if field.default_factory is None:
            return "required"
        value = field.default_factory()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        value = list(value)
    return f"`{value}`"


def _words(text: str | None) -> str:
    return re.sub(r"\bNone\b", "null", " ".join((text or "").split()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _refused() -> str:
    sections = {"GRPOMasterConfig": ""} | _paths(GRPOMasterConfig)
    lines = ["| key | instead |", "|---|---|"]
    for (owner, name), entry in UNAVAILABLE.items():
        if owner in sections:
            lines.append(f"| `{sections[owner]}{name}` | {_cell(entry.instead)} |")
    return "\n".join(lines) + "\n"


def _paths(section: Any, prefix: str = "") -> dict[str, str]:
    """Return class name -> path of its section, "" for the recipe itself."""
    paths: dict[str, str] = {}
    for name, field in section.model_fields.items():
        inner = section_in(field.annotation)
        if inner is not None:
            path = f"{prefix}{name}."
            paths[inner.__name__] = path
            paths |= _paths(inner, path)
    return paths


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
