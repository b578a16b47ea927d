"""A training and a generation engine that are not ours: a table of bigrams.

Each obeys the protocols and leaves out what a recipe may never ask for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nemo_rl.backends.generation.decoding import decode_batches
from nemo_rl.backends.training.base import ModelOutput
from nemo_rl.converters.hf_config import read_hf_config

TABLE = "table.weight"


class OwnEngine:
    """Log-probs of a token depend on the token before it alone."""

    def setup(self, config: Any) -> None:
        vocabulary = read_hf_config(config.model_folder)["vocab_size"]
        self.table = torch.zeros(vocabulary, vocabulary, requires_grad=True)
        kwargs = config.policy.optimizer.kwargs
        self.optimizer = torch.optim.Adam([self.table], lr=kwargs.lr)

    def _logprobs(self, batch: Any) -> torch.Tensor:
        ids = batch["input_ids"]
        scores = torch.log_softmax(self.table[ids[:, :-1]], -1)
        chosen = scores.gather(-1, ids[:, 1:, None])[..., 0]
        return torch.nn.functional.pad(chosen, (1, 0)) * batch["token_mask"]

    def train_step(self, batch: Any, loss_fn: Any) -> dict[str, Any]:
        loss, _ = loss_fn(batch, ModelOutput(logprobs=self._logprobs(batch)))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}

    def get_logprobs(self, batch: Any) -> torch.Tensor:
        return self._logprobs(batch).detach()

    def export_weights(self) -> Any:
        yield TABLE, self.table.detach()

    def save_checkpoint(self, path: Path) -> None:
        torch.save(self.table.detach(), path / "table.pt")

    def load_checkpoint(self, path: Path) -> None:
        with torch.no_grad():
            self.table.copy_(torch.load(path / "table.pt"))


class OwnGenerator:
    """Samples from a copy of the table, which it is given."""

    def setup(self, config: Any) -> None:
        self.updates = 0

    def update_weights(self, state_dict: Any) -> None:
        self.table = state_dict[TABLE].clone()
        self.updates += 1

    def generate(self, prompts: Any, sampling_params: Any) -> dict[str, torch.Tensor]:
        return decode_batches(prompts, sampling_params, None, lambda *_: self)

    def logits(self, ids: torch.Tensor, start: int) -> torch.Tensor:
        return self.table[ids[:, -1]]

    def agree(self, chosen: Any, rows: int) -> torch.Tensor:
        return chosen
