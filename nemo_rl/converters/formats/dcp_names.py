"""Which entries of a torch checkpoint are the weights of a model.

Their keys are Hugging Face names with something before them; which prefix it is follows
from the names that config.json implies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch

from nemo_rl.converters.bridge import some
from nemo_rl.converters.families import model_spec, rules_for
from nemo_rl.converters.hf_config import read_hf_config
from nemo_rl.utils.exceptions import CheckpointError

OUTPUT, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
"""The two names of one tensor in a tied model."""
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class Expected:
    """The tensors that a config.json implies.

    Attributes:
        shapes: Hugging Face name to shape, in the order of the layers.
        keeps: names that are never rounded.
        tied: the output layer is the embedding.
    """

    shapes: dict[str, tuple[int, ...]]
    keeps: frozenset[str]
    tied: bool

    def dtype(
        self, name: str, own: torch.dtype, asked: torch.dtype | None
    ) -> torch.dtype:
        """What a tensor is written in: as asked for, unless it keeps its own."""
        return own if asked is None or name in self.keeps else asked


def expected_of(config: Path) -> Expected:
    """The tensors of the model of a Hugging Face folder.

    Raises:
        ConfigurationError: no configuration, or one that no rules cover.
    """
    source = str(config / "config.json")
    spec = model_spec(read_hf_config(config), source=source)
    shapes: dict[str, tuple[int, ...]] = {}
    keeps: set[str] = set()
    for rule in rules_for(spec).values():
        shapes |= {name: spec.shape(dims) for name, dims in rule.hf.items()}
        keeps |= set(rule.hf) if rule.keeps_dtype else set()
    return Expected(shapes, frozenset(keeps), spec.tied)


@dataclass(frozen=True)
class Found:
    """Where the weights of a model lie in a checkpoint.

    Attributes:
        keys: Hugging Face name to key.
        left: keys of other things, such as the optimizer.
    """

    keys: dict[str, str]
    left: list[str]


def find_model(
    keys: Collection[str], expected: Expected, *, prefix: str | None = None
) -> Found:
    """Recognise the weights of a model among the keys of a checkpoint.

    Args:
        keys: of every entry.
        expected: tensors of the model.
        prefix: what stands before the names; None to find it out.

    Raises:
        CheckpointError: names are missing or too many, or several prefixes would do.
    """
    candidates = [key for key in keys if not key.startswith("optim")]
    named = {_plain(key): key for key in candidates}
    if len(named) < len(candidates):
        twice = set(candidates) - set(named.values())
        raise CheckpointError(
            f"entries differ in the names of torch's wrappers alone: {some(twice)}. "
            "Which one counts is not known: save the model's state dict once."
        )
    wanted = set(expected.shapes)
    if prefix is None:
        prefix = _prefix(named, wanted)
    elif prefix and not prefix.endswith("."):
        prefix += "."
    mine = {n[len(prefix) :]: key for n, key in named.items() if n.startswith(prefix)}
    if not prefix:
        # Beside the model's own modules lies what else the caller saved.
        tops = {name.split(".")[0] for name in wanted} | {"lm_head"}
        mine = {name: key for name, key in mine.items() if name.split(".")[0] in tops}
    surplus = {n for n in set(mine) - wanted if not n.endswith("rotary_emb.inv_freq")}
    if expected.tied:
        surplus.discard(OUTPUT)
    missing = wanted - set(mine)
    if missing or surplus:
        raise CheckpointError(
            f"the entries {prefix}* do not match config.json. Missing: "
            f"{some(missing)}. Unexpected: {some(surplus)}. Name the Hugging Face "
            "folder that was trained with --config."
        )
    used = {name: key for name, key in mine.items() if name in wanted}
    if expected.tied and OUTPUT in mine:
        used[OUTPUT] = mine[OUTPUT]
    return Found(used, sorted(set(keys) - set(used.values())))


def _plain(key: str) -> str:
    """A key without the names that torch's wrappers put between modules."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _prefix(named: Collection[str], wanted: set[str]) -> str:
    counts: Counter[str] = Counter()
    for name in named:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    whole = [prefix for prefix, count in counts.items() if count >= len(wanted)]
    if len(whole) > 1:
        raise CheckpointError(
            f"the model is there {len(whole)} times, under the prefixes "
            f"{', '.join(repr(p) for p in sorted(whole))}. Choose one with --prefix."
        )
    if not counts:
        raise CheckpointError(
            f"none of the {len(wanted)} names that config.json implies, such as "
            f"{some(wanted, 1)}, is the end of an entry. Found: {some(named)}."
        )
    return (whole or [counts.most_common(1)[0][0]])[0]
