"""TurnJoiner: the tokens between a sampled response and the next one.

Sampled ids are never made from text again: the template is asked only for what stands
after a response, by rendering the conversation with marks in place of responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_rl.data.llm_message_utils import render_prompt
from nemo_rl.utils.exceptions import DataError, RewardError
from nemo_rl.utils.suggest import did_you_mean

ROLES = ("user", "tool", "system", "environment")
_MARK = "\ue000{}\ue001"
_THOUGHT = "<think>\nt\n</think>\n\na"


class TurnJoiner:
    """Renders observations for a tokenizer.

    Without a chat template an observation is its bare text: what separates it from
    the response is up to the environment.

    Args:
        tokenizer: a ``transformers`` tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._template = bool(getattr(tokenizer, "chat_template", None))

    def check(self) -> None:
        """Make sure that the template leaves earlier turns as they were sampled.

        Raises:
            DataError: it takes the thinking out of earlier responses.
        """
        if not self._template:
            return
        messages = [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": _THOUGHT},
            {"role": "user", "content": "o"},
        ]
        if _THOUGHT not in self._render(messages):
            raise DataError(
                "The chat template rewrites earlier turns: the thinking of a response "
                "is taken out once a turn follows, but the policy has sampled the next "
                "response after it. Set policy.tokenizer.chat_template to one that "
                "keeps earlier turns, or grpo.max_rollout_turns to 1."
            )

    def between(
        self, messages: Sequence[Mapping[str, Any]], *, prompt: int, last_token: int
    ) -> list[int]:
        """Token ids from the end of a sampled response to the start of the next.

        Args:
            messages: the conversation up to and with the observation.
            prompt: how many of them are the prompt; assistant turns after it were
                sampled.
            last_token: the response's last token. Where it is the token by which the
                template ends the turn, that token is not put a second time.

        Raises:
            DataError: the template renders the turns so far in another way than when
                the response was sampled.
        """
        if not self._template:
            return self._encode(str(messages[-1]["content"]))
        turns = [
            {
                "role": "user" if m["role"] == "environment" else m["role"],
                "content": _MARK.format(number)
                if number >= prompt and m["role"] == "assistant"
                else m["content"],
            }
            for number, m in enumerate(messages)
        ]
        asked, continued = self._render(turns[:-2]), self._render(turns)
        before, mark, rest = continued.partition(turns[-2]["content"])
        if not mark or not before.startswith(asked) or before[len(asked) :].strip():
            raise DataError(
                "The chat template rewrites earlier turns: what stands before a "
                f"response is {asked[-80:]!r} when it is sampled and {before[-80:]!r} "
                "once a turn follows. Set policy.tokenizer.chat_template to one that "
                "keeps earlier turns, or grpo.max_rollout_turns to 1."
            )
        ids = self._encode(rest)
        tokenizer = self._tokenizer
        ends = {tokenizer.eos_token_id, *tokenizer.all_special_ids}
        if ids and ids[0] == last_token and last_token in ends:
            return ids[1:]
        return ids

    def _render(self, messages: list[dict[str, Any]]) -> str:
        return render_prompt(messages, self._tokenizer)[0]

    def _encode(self, text: str) -> list[int]:
        """Tokenise a text as the continuation that it is.

        Some tokenizers put a space before the first word of a text; after the end
        token, which is taken off again, it is no first word.
        """
        end = self._tokenizer.eos_token
        ids = self._tokenizer(f"{end or ''}{text}", add_special_tokens=False)
        ids = list(ids["input_ids"])
        return ids[1:] if end and ids[0] == self._tokenizer.eos_token_id else ids


def check_observation(observation: Any, environment: str) -> dict[str, str]:
    """Return an observation's role and content.

    Raises:
        RewardError: it is no message, or of a role that no environment has.
    """
    if (
        not isinstance(observation, Mapping)
        or not isinstance(observation.get("role"), str)
        or not isinstance(observation.get("content"), str)
    ):
        raise RewardError(
            f"{environment}.step returned the observation {observation!r}, expected "
            "{'role': 'user', 'content': ...}."
        )
    role = observation["role"]
    if role not in ROLES:
        raise RewardError(
            f"{environment}.step returned an observation of role {role!r}, expected "
            f"one of {', '.join(ROLES)}.{did_you_mean(role, ROLES)}"
        )
    return {"role": role, "content": observation["content"]}
