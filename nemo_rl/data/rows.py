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
        if not isinstance(row, Mapping):
            raise DataError(
                f"{where}: expected a mapping or a text, got {type(row).__name__}."
            )
        row = dict(row)
        messages = self._with_system(self._messages(row, where))
        return ReadRow(
            messages=messages,
            answer=row.get(self._config.answer_key),
            task_name=str(row.get("task_name") or "default"),
            row=row,
        )

    def _messages(self, row: dict[str, Any], where: str) -> list[dict[str, Any]]:
        messages_key, prompt_key = self._config.messages_key, self._config.prompt_key
        if row.get(messages_key) is not None:
            messages = row[messages_key]
        elif isinstance(row.get(prompt_key), list):
            # Preference and chat datasets often keep the conversation there.
            messages, messages_key = row[prompt_key], prompt_key
        elif prompt_key in row:
            prompt = row[prompt_key]
            if not isinstance(prompt, str) or not prompt:
                raise DataError(
                    f"{where}: field {prompt_key!r} must be a text that is not empty, "
                    f"got {prompt!r}."
                )
            return [{"role": "user", "content": self._filled(prompt)}]
        else:
            raise DataError(
                f"{where}: has neither {prompt_key!r} nor {messages_key!r}; its "
                f"fields are {sorted(row)}. Set data.prompt_key or data.messages_key."
                f"{did_you_mean(prompt_key, row)}"
            )
        if not isinstance(messages, (list, tuple)) or not messages:
            raise DataError(
                f"{where}: field {messages_key!r} must be a list of messages that is "
                f"not empty, got {messages!r}."
            )
        checked = [
            self._message(message, f"{where}: {messages_key}[{number}]")
            for number, message in enumerate(messages)
        ]
        if checked[-1]["role"] == "assistant":
            raise DataError(
                f"{where}: {messages_key} ends with an assistant's message; a prompt "
                "ends before the answer to generate."
            )
        if self._template is not None:
            checked[-1]["content"] = self._filled(checked[-1]["content"])
        return checked

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

    def _filled(self, prompt: str) -> str:
        # replace, not format: prompts and templates may hold other braces.
        return (
            prompt if self._template is None else self._template.replace("{}", prompt)
        )


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
