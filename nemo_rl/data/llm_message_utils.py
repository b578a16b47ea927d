"""Conversations to tokens: one rendering by the chat template, spans found in it.

Knows nothing about datasets or batches. A conversation is never rendered turn by turn:
templates may add to, or take from, a turn according to the ones after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_rl.utils.exceptions import DataError


def render_prompt(
    messages: Sequence[Mapping[str, Any]], tokenizer: Any
) -> tuple[str, list[int]]:
    """Render a conversation up to where the assistant's next turn begins.

    Args:
        messages: The turns so far. Without a chat template only a single user
            message can be rendered, and its text is encoded as it is.
        tokenizer: A ``transformers`` tokenizer.

    Returns:
        The text and its token ids.

    Raises:
        DataError: The tokenizer has no chat template for more than one message, or
            the template refuses the conversation.
    """
    if getattr(tokenizer, "chat_template", None):
        text = _apply_template(messages, tokenizer, add_generation_prompt=True)
        return text, list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if len(messages) != 1:
        raise DataError(
            f"A conversation of {len(messages)} messages needs a chat template and the "
            "tokenizer has none: set policy.tokenizer.chat_template, or give rows "
            "with a plain 'prompt'."
        )
    text = messages[0]["content"]
    ids = list(tokenizer(text)["input_ids"])
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        # Some tokenizers close every text; a prompt is to be continued.
        ids.pop()
    return text, ids


def format_messages(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    add_generation_prompt: bool = False,
) -> list[dict[str, Any]]:
    """Return the messages with ``token_ids`` and ``token_loss_mask`` added.

    The ids of all messages together are exactly the tokens of the whole conversation.
    The mask is 1 on what an assistant wrote and on the token that ends its turn.

    Args:
        messages: Turns with "role" and "content".
        tokenizer: A fast ``transformers`` tokenizer with a chat template.
        add_generation_prompt: Open the assistant's next turn; these tokens go to the
            last message, unmasked.

    Returns:
        Copies of the messages with two [L] int64 tensors each.

    Raises:
        DataError: There is no template, or it rewrites a message's text.
    """
    import torch

    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "format_messages() needs a chat template and the tokenizer has none: set "
            "policy.tokenizer.chat_template."
        )
    text = _apply_template(
        messages, tokenizer, add_generation_prompt=add_generation_prompt
    )
    spans = _content_spans(text, messages, tokenizer, add_generation_prompt)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    special = set(tokenizer.all_special_ids)
    formatted, position = [], 0
    for number, message in enumerate(messages):
        start, end = spans[number]
        first = position
        mask: list[int] = []
        assistant = message["role"] == "assistant"
        while position < len(ids) and offsets[position][0] < end:
            mask.append(int(assistant and offsets[position][0] >= start))
            position += 1
        if position < len(ids) and ids[position] in special:
            mask.append(int(assistant))
            position += 1
        if number == len(messages) - 1:
            mask += [0] * (len(ids) - position)
            position = len(ids)
        formatted.append(
            {
                **message,
                "token_ids": torch.tensor(ids[first:position], dtype=torch.long),
                "token_loss_mask": torch.tensor(mask, dtype=torch.long),
            }
        )
    return formatted


def encode_exchange(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    where: str,
    *,
    last_only: bool = False,
) -> tuple[str, list[int], list[int]]:
    """A conversation with answers as text, token ids and loss mask.

    Without a chat template a prompt and its answer are encoded each by itself, as they
    are when the policy is asked, and the end token is added.

    Args:
        messages: turns; the last one is the assistant's where ``last_only``.
        tokenizer: a ``transformers`` tokenizer.
        where: how to name the row in an error.
        last_only: the mask is 1 in the last message alone.

    Raises:
        DataError: more than one exchange and no template, or the template rewrites a
            message.
    """
    if getattr(tokenizer, "chat_template", None):
        try:
            turns = format_messages(messages, tokenizer)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        text = "".join(str(turn["content"]) for turn in turns)
        ids = [token for turn in turns for token in turn["token_ids"].tolist()]
        masks = [turn["token_loss_mask"].tolist() for turn in turns]
        if last_only:
            masks = [[0] * len(mask) for mask in masks[:-1]] + masks[-1:]
        return text, ids, [value for mask in masks for value in mask]
    if [message["role"] for message in messages] != ["user", "assistant"]:
        raise DataError(
            f"{where}: a conversation other than one question and its answer needs a "
            "chat template and the tokenizer has none: set "
            "policy.tokenizer.chat_template."
        )
    text, prompt = render_prompt(messages[:1], tokenizer)
    answer = messages[1]["content"]
    ids = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return text + answer, prompt + ids, [0] * len(prompt) + [1] * len(ids)


def _apply_template(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    add_generation_prompt: bool,
) -> str:
    from jinja2 import TemplateError

    plain = [{"role": m["role"], "content": m["content"]} for m in messages]
    try:
        return tokenizer.apply_chat_template(
            plain, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        roles = [message["role"] for message in plain]
        raise DataError(
            f"The chat template refuses a conversation of roles {roles}: {error}"
        ) from error


def _content_spans(
    text: str,
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    add_generation_prompt: bool,
) -> list[tuple[int, int]]:
    """Find each content's place, by what the template puts around marked contents.

    Searching for the content alone would find "assistant" in the turn's own header.
    """
    marks = [f"\ue000{number}\ue001" for number in range(len(messages))]
    marked = _apply_template(
        [
            {"role": message["role"], "content": mark}
            for message, mark in zip(messages, marks, strict=True)
        ],
        tokenizer,
        add_generation_prompt=add_generation_prompt,
    )
    spans: list[tuple[int, int]] = []
    cursor = 0
    for number, (message, mark) in enumerate(zip(messages, marks, strict=True)):
        before, found, marked = marked.partition(mark)
        start = cursor + len(before)
        content = message["content"]
        for candidate in (content, content.strip()):
            if found and text.startswith(before + candidate, cursor):
                cursor = start + len(candidate)
                break
        else:
            raise DataError(
                f"The chat template rewrites message {number} ({message['role']}): its "
                "text does not stand in the rendered conversation, so its tokens "
                "cannot be found."
            )
        spans.append((start, cursor))
    return spans
