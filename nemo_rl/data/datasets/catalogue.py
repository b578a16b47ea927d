"""Published datasets by name: one row each, with where it lies and how it is read.

What a field means stands in `math_rows.py` and `chat_rows.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nemo_rl.data.datasets import chat_rows, math_rows
from nemo_rl.data.datasets.files import open_file
from nemo_rl.data.datasets.hub import how_to_copy, is_saved, open_folder, open_hub
from nemo_rl.data.datasets.views import ChosenRows, JoinedRows, RewrittenRows
from nemo_rl.utils.exceptions import ConfigurationError, DataError
from nemo_rl.utils.suggest import did_you_mean

Rewrite = Callable[[Mapping[str, Any], str], dict[str, Any]]


class Published(NamedTuple):
    """A dataset on the hub."""

    hub: str
    """"owner/name"."""
    licence: str
    """As its own page states it."""
    columns: tuple[str, ...]
    """Columns that are read."""
    shapes: dict[str, Callable[[Any], Any]]
    """Shape -> what makes rows of it out of the published ones; default first."""
    splits: dict[str, str]
    """"train" and "validation" -> its own names of them, where they differ."""
    configs: tuple[str, ...] = ()
    """Subsets that make it up, where its page has several."""


def _each(rewrite: Rewrite) -> Callable[[Any], Any]:
    return lambda rows: RewrittenRows(rows, rewrite)


_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)

PUBLISHED: dict[str, Published] = {
    "deepscaler": Published(
        "agentica-org/DeepScaleR-Preview-Dataset",
        "MIT",
        ("problem", "answer"),
        {"prompts": _each(math_rows.deepscaler)},
        {},
    ),
    "gsm8k": Published(
        "openai/gsm8k",
        "MIT",
        ("question", "answer"),
        {
            "prompts": _each(math_rows.gsm8k),
            "conversations": _each(math_rows.gsm8k_solved),
        },
        {"validation": "test"},
        ("main",),
    ),
    "helpsteer2": Published(
        "nvidia/HelpSteer2",
        "CC-BY-4.0",
        ("prompt", "response", "helpfulness"),
        {
            "preferences": chat_rows.helpsteer2_pairs,
            "conversations": _each(chat_rows.helpsteer2),
        },
        {},
    ),
    "helpsteer3": Published(
        "nvidia/HelpSteer3",
        "CC-BY-4.0",
        ("context", "response1", "response2", "overall_preference"),
        {"preferences": chat_rows.helpsteer3_pairs},
        {},
        ("preference",),
    ),
    "math": Published(
        "EleutherAI/hendrycks_math",
        "MIT",
        ("problem", "solution"),
        {
            "prompts": _each(math_rows.hendrycks),
            "conversations": _each(math_rows.hendrycks_solved),
        },
        {"validation": "test"},
        _SUBJECTS,
    ),
    "openmathinstruct-2": Published(
        "nvidia/OpenMathInstruct-2",
        "CC-BY-4.0",
        ("problem", "generated_solution", "expected_answer"),
        {
            "prompts": _each(math_rows.openmathinstruct),
            "conversations": _each(math_rows.openmathinstruct_solved),
        },
        {},
    ),
    "tulu3_sft_mixture": Published(
        "allenai/tulu-3-sft-mixture",
        "ODC-BY-1.0",
        ("messages",),
        {"conversations": _each(chat_rows.tulu)},
        {},
    ),
    "ultrafeedback": Published(
        "HuggingFaceH4/ultrafeedback_binarized",
        "MIT",
        ("prompt", "chosen", "rejected"),
        {
            "preferences": _each(chat_rows.ultrafeedback),
            "conversations": _each(chat_rows.ultrafeedback_chosen),
        },
        {"train": "train_prefs", "validation": "test_prefs"},
    ),
}
"""Name -> dataset. The hub's own name of each is known too."""


_COPY = "data.dataset_kwargs.path"


def published(name: str) -> str | None:
    """Return the short name of a dataset of the table, however it is spelt, or None."""
    wanted = name.lower()
    for short, entry in PUBLISHED.items():
        if wanted in (short, entry.hub.lower()):
            return short
    return None


def open_published(
    name: str,
    split: str = "train",
    *,
    path: str | Path | None = None,
    shape: str | None = None,
    size: int | None = None,
) -> Any:
    """Return the rows of a dataset of the table.

    Args:
        name: Its short name.
        split: "train", "validation" or the dataset's own name of a split.
        path: A copy on this machine: a folder; or a file, or a table that was saved
            alone, which is the split itself. None asks the hub and its cache.
        shape: "prompts", "conversations" or "preferences"; None: its first.
        size: At most this many rows, from the beginning.

    Raises:
        ConfigurationError: It has no such shape, or can be had neither from the hub
            nor from the cache.
        DataError: The copy has other columns, or no such split.
    """
    entry = PUBLISHED[name]
    shape = shape or next(iter(entry.shapes))
    if shape not in entry.shapes:
        raise ConfigurationError(
            f"{name} has no shape {shape!r}; it has {', '.join(entry.shapes)}."
            f"{did_you_mean(shape, entry.shapes)}"
        )
    if size is not None and size < 1:
        raise DataError(f"size={size}: {name} needs at least 1 row.")
    rows = _open(entry, entry.splits.get(split, split), path)
    where = str(path or entry.hub)
    found = list(rows[0]) if len(rows) else []
    missing = [column for column in entry.columns if column not in found]
    if missing:
        raise DataError(
            f"{where} lacks the columns {', '.join(missing)} of {entry.hub}; it has "
            f"{', '.join(found) or 'no rows'}."
        )
    rows = entry.shapes[shape](rows)
    return rows if size is None else ChosenRows(rows, range(min(size, len(rows))))


def _open(entry: Published, split: str, path: str | Path | None) -> Any:
    if path is None:
        parts = [
            open_hub(entry.hub, split, setting=_COPY, **arguments)
            for arguments in _subsets(entry)
        ]
    else:
        place = Path(path).expanduser()
        if not place.exists():
            raise DataError(
                f"The copy {str(path)!r} of {entry.hub} does not exist. "
                f"{how_to_copy(entry.hub, _COPY)}"
            )
        if place.is_file():
            return open_file(place)
        # A copy has its page, which lists the subsets; a converted one is whole.
        whole = is_saved(place) or not (place / "README.md").is_file()
        subsets = [{}] if whole else _subsets(entry)
        parts = [open_folder(place, split, **arguments) for arguments in subsets]
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def _subsets(entry: Published) -> list[dict[str, str]]:
    return [{"name": config} for config in entry.configs] or [{}]
