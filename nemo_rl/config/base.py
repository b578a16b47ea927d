"""BaseConfig: a pydantic section that forbids unknown keys and reads like a mapping.

It knows no section. Pydantic's errors never leave it: every problem of a recipe is
listed in one ConfigurationError in the words of `config.messages`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from nemo_rl.config.availability import refusal
from nemo_rl.config.messages import describe, describe_unknown
from nemo_rl.utils.exceptions import ConfigurationError


def plain(value: Any) -> Any:
    """Turn any mapping or sequence (OmegaConf's too) into dicts and lists."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {str(key): plain(value[key]) for key in value}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "ListConfig":
        return [plain(item) for item in value]
    return value


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay `changes` over `base`: mappings are merged, anything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = merge(below, value)
        else:
            merged[key] = plain(value)
    return merged


class _ConfigMeta(type(BaseModel)):
    """Makes `SomeConfig(...)` raise ConfigurationError instead of pydantic's error.

    On the metaclass, because pydantic builds nested sections without it: the
    outermost call reports every problem with its full path.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            section = cast(type[BaseModel], cls)
            raise ConfigurationError(describe(section, error)) from None


class BaseConfig(BaseModel, metaclass=_ConfigMeta):
    """Base of every configuration section.

    Fields are read as attributes or as in a mapping (`config["seed"]`,
    `config.get("seed", 0)`, `"seed" in config`). Assigning an attribute validates.
    """

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        use_attribute_docstrings=True,
        # Sections of a resolved recipe are copied, not shared, between configs.
        revalidate_instances="always",
        protected_namespaces=(),
    )

    @field_validator("*", mode="after")
    @classmethod
    def _available(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what `config.availability` says this version does not have."""
        reason = refusal(cls.__name__, str(info.field_name), value)
        if reason:
            raise ValueError(reason)
        return value

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any] | BaseConfig) -> Self:
        """Validate a dict, an OmegaConf DictConfig or any other mapping.

        Raises:
            ConfigurationError: lists every key that is unknown, missing or wrong.
        """
        if isinstance(mapping, BaseConfig):
            mapping = mapping.to_dict()
        if not isinstance(mapping, Mapping):
            raise ConfigurationError(
                f"{cls.__name__} is built from a mapping of keys to values, "
                f"not from {type(mapping).__name__}."
            )
        return cls(**plain(mapping))

    def merged(self, changes: Mapping[str, Any]) -> Self:
        """Return a validated copy with nested `changes` laid over it."""
        return type(self).from_mapping(merge(self.to_dict(), plain(changes)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and scalars, fit for YAML or JSON."""
        return self.model_dump(mode="json")

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field's value, or `default` if there is no such field."""
        return getattr(self, name) if name in self else default

    def keys(self) -> list[str]:
        """Return the names of the fields, so that `dict(config)` and `**` work."""
        return [*type(self).model_fields, *(self.model_extra or {})]

    def __getitem__(self, name: str) -> Any:
        """Return a field's value; KeyError if there is no such field."""
        if name not in self:
            raise KeyError(name)
        return getattr(self, name)

    def __contains__(self, name: object) -> bool:
        """Return whether there is such a field."""
        return name in type(self).model_fields or name in (self.model_extra or {})

    def __iter__(self) -> Iterator[str]:  # pyrefly: ignore[bad-override]
        """Iterate over the names of the fields."""
        return iter(self.keys())

    def __len__(self) -> int:
        """Return the number of fields."""
        return len(self.keys())

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign a field, validated; ConfigurationError if there is none."""
        if name[0] != "_" and name not in self:
            raise ConfigurationError(describe_unknown(type(self), name))
        try:
            super().__setattr__(name, value if name[0] == "_" else plain(value))
        except ValidationError as error:
            raise ConfigurationError(describe(type(self), error)) from None

    def _settle(self, name: str, value: Any) -> None:
        """Set a field from within a validator, without validating again."""
        self.__dict__[name] = value
