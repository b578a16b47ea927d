"""Every datum shape on the path from a prompt to an update, each with an example.

Shape letters: B rows (completions), P prompts, G generations per prompt, S longest
sequence of the batch, V vocabulary. Index t of any [B, S] column speaks of token t of
``input_ids``; losses use columns 1 .. S-1. Knows no dataset, tokenizer or model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NotRequired, Required, TypedDict

if TYPE_CHECKING:
    import torch


class Message(TypedDict, total=False):
    """One turn of a conversation: ``{"role": "user", "content": "5 + 2 ="}``."""

    role: Required[str]
    """"system", "user", "assistant" or "tool"."""
    content: Required[str]
    """What was said."""
    token_ids: torch.Tensor
    """[L] int64; the turn's part of the conversation rendered once."""
    token_loss_mask: torch.Tensor
    """[L] int64; 1 on tokens of an assistant turn."""


class PromptRow(TypedDict, total=False):
    """A row of a dataset: one of ``messages`` or ``prompt``, the rest optional.

    Example: ``{"prompt": "5 + 2 =", "answer": "7"}``, or
    ``{"messages": [{"role": "user", "content": "5 + 2 ="}], "answer": "7"}``.
    Extra fields travel along in ``row``.
    """

    messages: list[Message]
    """The conversation so far, ending before the turn to generate."""
    prompt: str
    """A plain prompt, instead of ``messages``."""
    answer: Any
    """Reference answer, for the reward."""
    task_name: str
    """Which environment grades it; "default" where absent."""


class PromptBatch(TypedDict):
    """P prompts ready to be asked; what ``DataModule.batches`` yields.

    Example of two prompts of 3 and 2 tokens (padding 0)::

        input_ids      [[5, 6, 7], [8, 9, 0]]
        input_lengths  [3, 2]
        idx            [17, 4]
        answer         ["7", "12"]
    """

    input_ids: torch.Tensor
    """[P, S] int64, right-padded."""
    input_lengths: torch.Tensor
    """[P] int64, valid tokens of each row."""
    idx: torch.Tensor
    """[P] int64, index of the row in the dataset."""
    prompt: list[str]
    """The rendered text, special tokens included."""
    messages: list[list[Message]]
    """The conversation; a plain prompt is one user message."""
    answer: list[Any]
    """Reference answers; None where the row has none."""
    task_name: list[str]
    """Environment of each row."""
    row: list[dict[str, Any]]
    """The raw rows."""


class RolloutBatch(PromptBatch):
    """B = P·G completions with their rewards; what ``RolloutEngine.run`` returns.

    PromptBatch fields are repeated G times; ``input_ids`` and ``input_lengths`` now
    cover prompt and response. Example: prompt [5, 6, 7], response [9, 2] with 2 = EOS,
    in a batch whose longest row has 6 tokens::

        input_ids            [5, 6, 7,   9,    2, 0]
        input_lengths        5
        prompt_lengths       3
        token_mask           [0, 0, 0,   1,    1, 0]
        generation_logprobs  [0, 0, 0, -.2, -.01, 0]
        response             "9"      truncated False      rewards 1.0
    """

    prompt_lengths: torch.Tensor
    """[B] int64, tokens before the first response."""
    token_mask: torch.Tensor
    """[B, S] float32; 1 on sampled tokens, EOS included."""
    generation_logprobs: torch.Tensor
    """[B, S] float32, log-probability at sampling; 0 where token_mask is 0."""
    token_versions: NotRequired[torch.Tensor]
    """[B, S] int64, version of the weights that sampled the token, -1 where token_mask
    is 0; from generators that tell."""
    group: torch.Tensor
    """[B] int64, index of the prompt in the step's batch: what a baseline groups by."""
    response: list[str]
    """Decoded response without the stop token; the last one of several."""
    conversation: list[list[Message]]
    """What policy and environment said after the prompt, in turn."""
    num_turns: torch.Tensor
    """[B] int64, responses in it. Between them stand the environment's observations,
    where token_mask and generation_logprobs are 0."""
    rewards: torch.Tensor
    """[B] float32, summed over the turns."""
    truncated: torch.Tensor
    """[B] bool; the generator ran out of tokens before it stopped."""
    sample_mask: torch.Tensor
    """[B] float32; 0 removes the row from the loss."""


class TrainBatch(RolloutBatch):
    """A rollout batch with everything a policy-gradient loss asks for."""

    advantages: torch.Tensor
    """[B, S] float32; the row's advantage on every token."""
    prev_logprobs: torch.Tensor
    """[B, S] float32, under the policy before the update; column 0 is 0."""
    reference_policy_logprobs: torch.Tensor
    """[B, S] float32, under the initial policy; column 0 is 0."""


class GenerationDatumSpec(TypedDict):
    """Input of a generation backend."""

    input_ids: torch.Tensor
    """[B, S] int64, right-padded prompts."""
    input_lengths: torch.Tensor
    """[B] int64, valid tokens of each prompt."""
    attention_mask: NotRequired[torch.Tensor]
    """[B, S]; may stand in for input_lengths: 1 on valid tokens."""
    stop_strings: NotRequired[list[list[str] | None]]
    """Extra stop strings per row."""
    __extra__: Any
    """Columns of a particular backend or environment."""


class GenerationOutputSpec(TypedDict):
    """Output of a generation backend.

    Example: prompt [5, 6, 7], generated [9, 2]: output_ids [5, 6, 7, 9, 2],
    generation_lengths 2, unpadded_sequence_lengths 5, logprobs [0, 0, 0, -.2, -.01].
    """

    output_ids: torch.Tensor
    """[B, S] int64, prompt and response, right-padded."""
    generation_lengths: torch.Tensor
    """[B] int64, length of the response, EOS included."""
    unpadded_sequence_lengths: torch.Tensor
    """[B] int64, length of prompt and response."""
    logprobs: torch.Tensor
    """[B, S] float32, 0 on prompt and padding."""
    truncated: NotRequired[torch.Tensor]
    """[B] bool; stopped by the token limit."""
    token_versions: NotRequired[torch.Tensor]
    """[B, S] int64, version of the weights that sampled the token; -1 on prompt and
    padding."""
    __extra__: Any
    """Further columns of a particular backend."""


class LogprobsSpec(TypedDict):
    """Log-probabilities of given tokens: ``{"logprobs": [B, S] float32}``."""

    logprobs: torch.Tensor
    """[B, S] float32; column t is the log-probability of token t, column 0 is 0."""


class TrainingDatumSpec(TypedDict):
    """The least a policy can be trained on; losses ask for more columns."""

    input_ids: torch.Tensor
    """[B, S] int64, right-padded."""
    input_lengths: torch.Tensor
    """[B] int64."""
    token_mask: torch.Tensor
    """[B, S] float32; 1 on tokens that enter the loss."""
    sample_mask: torch.Tensor
    """[B] float32; 1 on rows that enter the loss."""
    __extra__: Any
    """Columns of a particular loss."""


class PreferenceBatch(TrainingDatumSpec):
    """P pairs in B = 2 P rows: chosen, rejected, chosen, rejected ...

    The mask is 1 on the last answer alone. Example of one pair, prompt [5, 6], chosen
    [9, 2], rejected [8, 8, 2] with 2 = EOS::

        input_ids      [[5, 6, 9, 2, 0],    [5, 6, 8, 8, 2]]
        token_mask     [[0, 0, 1, 1, 0],    [0, 0, 1, 1, 1]]
        input_lengths  [4, 5]               sample_mask [1, 1]
    """

    reference_policy_logprobs: NotRequired[torch.Tensor]
    """[B, S] float32, under the initial policy; column 0 is 0."""


class DatasetInterface(ABC):
    """Base of a user's dataset: rows by index.

    Example:
        >>> class Sums(DatasetInterface):
        ...     def __len__(self):
        ...         return 100
        ...     def __getitem__(self, idx):
        ...         return {"prompt": f"{idx} + 1 =", "answer": str(idx + 1)}
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        """Keep the dataset's own settings."""
        self.config = dict(config or {})

    @abstractmethod
    def __getitem__(self, idx: int) -> Mapping[str, Any]:
        """Return row ``idx``: a PromptRow, or token columns for custom training."""

    def __len__(self) -> int:
        """Return the number of rows.

        Raises:
            TypeError: The subclass does not say how many rows it has.
        """
        raise TypeError(
            f"{type(self).__name__} has no __len__; define it to train on this dataset."
        )
