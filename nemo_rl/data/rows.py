"""RowReader: a raw row of any dataset becomes messages, answer and task name.

Checks each field and names the row it complains of. Knows no tokens and no batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_rl.config.data import DataConfig
from nemo_rl.utils.exceptions import ConfigurationError, DataError
from nemo_rl.utils.suggest import did_you_mean

ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True)
class ReadRow:
    """What a row says, apart from its tokens."""

    messages: list[dict[str, Any]]
    """The conversation, system prompt and prompt template applied."""
    answer: Any
    """Reference answer, or None."""
    task_name: str
    """Environment that grades it."""
    row: dict[str, Any]
    """The row as it came."""


class RowReader:
    """Reads rows by the field names of the data section.

    Args:
        config: The data section.
        search_dir: Folder of the recipe; relative files are also looked for there.

    Raises:
        ConfigurationError: A prompt file is missing or has no place for the prompt.
    """

    def __init__(
        self, config: DataConfig, *, search_dir: Path | str | None = None
    ) -> None:
        """Read the prompt files, if the section names any."""
        self._config = config
        self._system = config.system_prompt
        if config.system_prompt_file is not None:
            self._system = _read(config.system_prompt_file, search_dir)
        self._template: str | None = None
        if config.prompt_file is not None:
            self._template = _read(config.prompt_file, search_dir)
            if "{}" not in self._template:
                raise ConfigurationError(
                    f"data.prompt_file={config.prompt_file!r} has no {{}} where the "
                    "prompt is to stand."
                )

    def read(self, row: Any, where: str) -> ReadRow:
        """Check a row and read its fields.

        Args:
            row: A mapping, or a plain string: the prompt.
            where: How to name the row in an error.

        Raises:
            DataError: A field is missing, empty or of the wrong kind.
        """
        if isinstance(row, str):
            row = {self._config.prompt_key: row}
        row = _mapping(row, where, "a mapping or a text")
        messages, key = self._messages(row, where)
        if messages[-1]["role"] == "assistant":
            raise DataError(
                f"{where}: {key} ends with an assistant's message; a prompt ends "
                "before the answer to generate."
            )
        return ReadRow(
            messages=self._with_system(self._templated(messages)),
            answer=row.get(self._config.answer_key),
            task_name=_task_name(row, where),
            row=row,
        )

    def read_conversation(self, row: Any, where: str) -> list[dict[str, Any]]:
        """The messages of a row to learn from, the answers among them.

        Args:
            row: ``messages`` that end with an assistant's, or ``prompt`` and
                ``response``.
            where: How to name the row in an error.

        Raises:
            DataError: A field is missing, empty or of the wrong kind.
        """
        row = _mapping(row, where, "a mapping")
        messages, key = self._messages(row, where)
        answer = self._config.response_key
        if answer in row and row.get(self._config.messages_key) is None:
            messages = [*self._templated(messages), _answer(row, answer, where)]
        elif messages[-1]["role"] != "assistant":
            raise DataError(
                f"{where}: {key} ends with a message of {messages[-1]['role']!r} and "
                f"there is no field {answer!r}: there is no answer to learn. Set "
                "data.response_key to the field that holds it."
                f"{did_you_mean(answer, map(str, row))}"
            )
        return self._with_system(messages)

    def read_preference(
        self, row: Any, where: str
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The conversations with the better and with the worse answer.

        Args:
            row: a prompt and two answers; answers that are lists of messages may
                repeat the prompt, or stand without one.
            where: How to name the row in an error.

        Raises:
            DataError: A field is missing or of the wrong kind, or the two
                conversations differ before their last message.
        """
        row = _mapping(row, where, "a mapping")
        keys = (self._config.prompt_key, self._config.messages_key)
        prompt: list[dict[str, Any]] = []
        if any(row.get(key) is not None for key in keys):
            prompt = self._templated(self._messages(row, where)[0])
        pair = []
        for key in (self._config.chosen_key, self._config.rejected_key):
            if isinstance(row.get(key), (list, tuple)):
                messages = self._checked(row[key], key, where)
                if messages[0]["role"] != "assistant":
                    messages = messages[len(prompt) :] if prompt else messages
            else:
                messages = [_answer(row, key, where)]
            messages = [*prompt, *messages]
            if messages[-1]["role"] != "assistant" or len(messages) < 2:
                raise DataError(
                    f"{where}: {key} must be an assistant's answer to a prompt; with "
                    f"the prompt its roles are {[m['role'] for m in messages]}."
                )
            pair.append(self._with_system(messages))
        if pair[0][:-1] != pair[1][:-1]:
            raise DataError(
                f"{where}: {keys[0]}, {self._config.chosen_key} and "
                f"{self._config.rejected_key} must be one conversation up to the last "
                "message, and they differ before it."
            )
        if pair[0][-1]["content"] == pair[1][-1]["content"]:
            raise DataError(
                f"{where}: {self._config.chosen_key} and {self._config.rejected_key} "
                "are the same answer; there is no preference to learn."
            )
        return pair[0], pair[1]

    def _messages(
        self, row: dict[str, Any], where: str
    ) -> tuple[list[dict[str, Any]], str]:
        """The row's conversation as it stands there, and the field it came from."""
        messages_key, prompt_key = self._config.messages_key, self._config.prompt_key
        if row.get(messages_key) is not None:
            return self._checked(row[messages_key], messages_key, where), messages_key
        if isinstance(row.get(prompt_key), list):
            # Preference and chat datasets often keep the conversation there.
            return self._checked(row[prompt_key], prompt_key, where), prompt_key
        if prompt_key not in row:
            raise DataError(
                f"{where}: has neither {prompt_key!r} nor {messages_key!r}; its "
                f"fields are {sorted(map(str, row))}. Set data.prompt_key or "
                f"data.messages_key.{did_you_mean(prompt_key, map(str, row))}"
            )
        prompt = _text(row, prompt_key, where)
        return [{"role": "user", "content": prompt}], prompt_key

    def _checked(self, messages: Any, key: str, where: str) -> list[dict[str, Any]]:
        if not isinstance(messages, (list, tuple)) or not messages:
            raise DataError(
                f"{where}: field {key!r} must be a list of messages that is "
                f"not empty, got {messages!r}."
            )
        return [
            self._message(message, f"{where}: {key}[{number}]")
            for number, message in enumerate(messages)
        ]

    def _templated(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The prompt file's text around the last message."""
        if self._template is None:
            return messages
        last = messages[-1]
        # replace, not format: prompts and templates may hold other braces.
        content = self._template.replace("{}", last["content"])
        return [*messages[:-1], {**last, "content": content}]

    def _message(self, message: Any, where: str) -> dict[str, Any]:
        if not isinstance(message, Mapping):
            raise DataError(
                f"{where}: expected {{'role': ..., 'content': ...}}, got {message!r}."
            )
        for field in ("role", "content"):
            if not isinstance(message.get(field), str):
                raise DataError(
                    f"{where}: field {field!r} must be a text, got "
                    f"{message.get(field)!r}."
                )
        if message["role"] not in ROLES:
            raise DataError(
                f"{where}: role {message['role']!r} is none of {', '.join(ROLES)}."
                f"{did_you_mean(message['role'], ROLES)}"
            )
        return dict(message)

    def _with_system(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self._system is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self._system}, *messages]


def _mapping(row: Any, where: str, expected: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: expected {expected}, got {type(row).__name__}.")
    return dict(row)


def _text(row: Mapping[str, Any], key: str, where: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value:
        raise DataError(
            f"{where}: field {key!r} must be a text that is not empty, got {value!r}."
        )
    return value


def _task_name(row: Mapping[str, Any], where: str) -> str:
    name = row.get("task_name")
    if name is not None and not isinstance(name, str):
        raise DataError(
            f"{where}: field 'task_name' must be the name of an environment, got "
            f"{name!r}."
        )
    return name or "default"


def _answer(row: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    if key not in row:
        raise DataError(
            f"{where}: has no field {key!r}; its fields are {sorted(map(str, row))}. "
            "Set data.chosen_key and data.rejected_key."
            f"{did_you_mean(key, map(str, row))}"
        )
    return {"role": "assistant", "content": _text(row, key, where)}


def _read(name: str, search_dir: Path | str | None) -> str:
    path = Path(name).expanduser()
    places = [path] + ([Path(search_dir) / path] if search_dir is not None else [])
    for place in places:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise ConfigurationError(
        f"The prompt file {name!r} does not exist (looked at "
        f"{', '.join(str(place) for place in places)})."
    )
