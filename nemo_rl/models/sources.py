"""From whatever names a model to its folder, and to a policy with its weights.

A training checkpoint is a model as well. Knows no data set and no task; writes nothing
before the weights are asked for.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_rl.config.master import MasterConfig
from nemo_rl.converters.formats.hf import HF_PART
from nemo_rl.infra.assets import resolve_model
from nemo_rl.infra.checkpoint_folders import find_newest, steps_in
from nemo_rl.infra.manifest import MANIFEST_NAME, ManifestError, verify
from nemo_rl.infra.resources import ResourceManager
from nemo_rl.models.policy.lm_policy import Policy
from nemo_rl.utils.exceptions import CheckpointError


@dataclass(frozen=True)
class ModelSource:
    """Where a model was found.

    Attributes:
        folder: config.json and tokenizer; the weights too where `checkpoint` is None.
        checkpoint: what an engine wrote; its weights must be converted first.
        step: the training steps it has behind it; None where that is not known.
    """

    folder: Path
    checkpoint: Path | None = None
    step: int | None = None


def find_model(name: str | Path) -> ModelSource:
    """Find a model by its name or folder.

    Args:
        name: what ``resolve_model`` takes; or a checkpoint of a training run
            (``step_000100``), its folder of checkpoints or the run's folder, of which
            the newest whole checkpoint is meant; or a converted Megatron checkpoint.

    Raises:
        ConfigurationError: there is no such model.
        CheckpointError: it is a checkpoint, and damaged.
    """
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        for place in (folder, folder / "checkpoints"):
            if steps_in(place):
                newest, _ = find_newest(place)
                if newest is not None:
                    return _of_checkpoint(newest.path, newest.step)
        if (folder / MANIFEST_NAME).is_file():
            return _of_checkpoint(folder, _step_of(folder))
        if (folder / HF_PART / "config.json").is_file():
            return ModelSource(folder / HF_PART, checkpoint=folder)
    return ModelSource(resolve_model(str(name)))


@contextmanager
def weights_of(source: ModelSource, scratch: Path | None = None) -> Iterator[Path]:
    """A Hugging Face folder with the weights, for as long as the context is open.

    Args:
        source: from ``find_model``.
        scratch: where a checkpoint's weights are written, seen by every node; None
            for this machine's folder of temporary files.
    """
    if source.checkpoint is None:
        yield source.folder
        return
    place = Path(tempfile.mkdtemp(prefix=".weights-", dir=scratch))
    try:
        yield _converted(source.checkpoint, place / "model")
    finally:
        shutil.rmtree(place)


@contextmanager
def opened_policy(
    source: ModelSource,
    config: MasterConfig,
    tokenizer: Any = None,
    *,
    seed: int = 0,
    scratch: Path | None = None,
) -> Iterator[Policy]:
    """Workers with the model's weights, for as long as the context is open.

    Args:
        source: from ``find_model``.
        config: its policy section, but for the model's name, and its cluster section.
        tokenizer: as for ``Policy``.
        seed: of the workers' generators.
        scratch: as for ``weights_of``.
    """
    cluster = config.cluster
    with ExitStack() as stack:
        weights = stack.enter_context(weights_of(source, scratch))
        resources = ResourceManager(cluster, config.layout)
        stack.callback(resources.release)
        policy = Policy(
            resources.allocate(),
            config.policy.merged({"model_name": str(weights)}),
            tokenizer,
            keep_reference=False,
            seed=seed,
            threads=None if cluster.use_gpus else cluster.num_cpus_per_worker,
        )
        stack.callback(policy.shutdown)
        policy.refit()
        yield policy


def _converted(checkpoint: Path, target: Path) -> Path:
    """Write the weights of a checkpoint as a Hugging Face folder."""
    contents = checkpoint / "contents.json"
    engine = "megatron"
    if contents.is_file():
        engine = json.loads(contents.read_text(encoding="utf-8")).get("engine", engine)
    if engine == "dtensor":
        from nemo_rl.converters.dcp import dcp_to_hf

        dcp_to_hf(checkpoint / "weights", target, config=checkpoint / HF_PART)
    else:
        from nemo_rl.converters.convert import convert

        convert(checkpoint, target)
    return target


def _of_checkpoint(path: Path, step: int) -> ModelSource:
    """Prefer the Hugging Face folder that ``save_consolidated`` has written."""
    if (path / "hf" / "config.json").is_file():
        return ModelSource(path / "hf", step=step)
    saved = path / "policy"
    return ModelSource(saved / HF_PART, checkpoint=saved, step=step)


def _step_of(path: Path) -> int:
    try:
        return verify(path).step
    except ManifestError as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {error}") from error
