"""RewardModelEnvironment: scores conversations by a sequence classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nemo_rl.config.environment import RewardModelEnvConfig
from nemo_rl.environments.interfaces import (
    EnvironmentInterface,
    EnvironmentReturn,
    last_turn,
)
from nemo_rl.infra.assets import resolve_model
from nemo_rl.utils.exceptions import ConfigurationError, RewardError
from nemo_rl.utils.imports import require


class RewardModelEnvironment(EnvironmentInterface):
    """Rewards the only output of an ``AutoModelForSequenceClassification``.

    A conversation is rendered by the classifier's own chat template; where it has
    none, its messages are put one after the other. The model is loaded at the first
    step, on the GPU that the process was given, else on the CPU.

    Args:
        config: The fields of ``env.reward_model``.
    """

    def __init__(self, config: RewardModelEnvConfig | Mapping[str, Any]) -> None:
        """Read the settings; nothing is loaded yet."""
        section = RewardModelEnvConfig.from_mapping(config)
        super().__init__(section.to_dict())
        self._section = section
        self._model: Any = None

    def step(
        self,
        message_log_batch: list[list[dict[str, Any]]],
        metadata: list[dict[str, Any]],
    ) -> EnvironmentReturn:
        """Score every conversation; all are over.

        Raises:
            ConfigurationError: The model is no classifier with one output.
            RewardError: A score is not finite.
        """
        if self._model is None:
            self._load()
        rows = [self._ids(log) for log in message_log_batch]
        # Rows of a like length together: less padding.
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        scores = torch.zeros(len(rows))
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            scores[chosen] = self._score([rows[row] for row in chosen])
        if not bool(torch.isfinite(scores).all()):
            raise RewardError(
                f"The reward model {self._section.model_name} returned scores that are "
                "not finite."
            )
        return last_turn(scores)

    def shutdown(self) -> None:
        """Forget the model."""
        self._model = None

    def _load(self) -> None:
        transformers = require("transformers")
        folder = resolve_model(self._section.model_name)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model, notes = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=torch.bfloat16 if device == "cuda" else torch.float32,
            output_loading_info=True,
        )
        labels, missing = model.config.num_labels, sorted(notes["missing_keys"])
        if labels != 1 or missing:
            found = f"has {labels} outputs" if labels != 1 else f"lacks {missing[0]}"
            raise ConfigurationError(
                f"env.reward_model.model_name={self._section.model_name!r} {found}, "
                "expected a trained sequence classifier with one output "
                "(num_labels: 1)."
            )
        pad, end = self._tokenizer.pad_token_id, self._tokenizer.eos_token_id
        # The classifier reads the last token that is no padding. Where padding looks
        # like the end of a turn, only rows without padding are read right.
        distinct = pad is not None and pad != end
        self._pad, self._batch_size = (
            (pad, self._section.batch_size) if distinct else (0, 1)
        )
        model.config.pad_token_id = pad if distinct else None
        self._model = model.to(device).eval()

    def _ids(self, log: Sequence[Mapping[str, Any]]) -> list[int]:
        messages = [{"role": m["role"], "content": m["content"]} for m in log]
        tokenizer = self._tokenizer
        if getattr(tokenizer, "chat_template", None):
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        else:
            ids = tokenizer("".join(m["content"] for m in messages))["input_ids"]
        limit = self._section.max_length
        return list(ids) if limit is None else list(ids[-limit:])

    @torch.no_grad()
    def _score(self, rows: list[list[int]]) -> torch.Tensor:
        """[b] float32 scores of rows of token ids."""
        width = max(len(row) for row in rows)
        padded = [row + [self._pad] * (width - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        device = self._model.device
        output = self._model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
        )
        return output.logits[:, 0].float().cpu()
