"""What every section of `params.yaml` is made of: strict types, ranges, and a line of documentation for each setting."""

import re
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

T = TypeVar("T")

Precision = Literal["float32", "bf16"]


class ConfigError(ValueError):
    """A setting is unknown, missing, of the wrong type, or out of range. The message begins with its path in `params.yaml`,
    or with the preset's file."""


class Section(BaseModel):
    """A part of `params.yaml`. Unknown keys, values of another type, NaN and infinity are refused; a section never changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _none(cls, value: Any, info: ValidationInfo) -> Any:
        """Take `none` as written out, for settings that may be None: an empty value leaves it to the preset."""
        optional = info.field_name is not None and type(None) in get_args(cls.model_fields[info.field_name].annotation)
        return None if optional and value == "none" else value


def _moderate(number: int) -> int:
    if number >= 2**31:
        raise ValueError("must be below 2^31")
    return number


def _text(value: str) -> str:
    if not value or value != value.strip() or not value.isprintable():
        raise ValueError("expected a text that is not empty, without spaces around it and control characters in it")
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?", value):
        raise ValueError("expected a name of letters, digits, _ and -, which begins and ends with a letter or digit")
    return value


def _folder(value: str) -> str:
    """Check a folder below `paths.root`. DVC watches `paths.root`/`folder`, and readers look there too: both have to mean the same
    place."""
    parts = value.split("/")
    if not value.strip("./ ") or value.startswith("/") or value != value.strip() or ".." in parts or "$" in value:
        raise ValueError("must be the path of a folder below paths.root, without .. and $")
    if not value.isprintable():
        raise ValueError("must be the path of a folder below paths.root, without control characters")
    return value


def owner_and_name(value: str) -> str:
    """Return a repository of the hub. Raises `ValueError` for what is not one."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", value):
        raise ValueError("expected owner/name")
    return value


def _file_name(value: str) -> str:
    if not value.strip(".") or re.search(r"[/\\]", value) or value != value.strip() or not value.isprintable():
        raise ValueError("expected a plain file name")
    return value


def _hexadecimal(digits: int) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value):
            raise ValueError(f"expected {digits} lower-case hexadecimal digits")
        return value

    return AfterValidator(check)


Count = Annotated[int, Field(ge=1), AfterValidator(_moderate)]
Number = Annotated[int, Field(ge=0), AfterValidator(_moderate)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Text = Annotated[str, AfterValidator(_text)]
Name = Annotated[str, AfterValidator(_name)]
"""Names of sets and variants become names of files and of DVC's stages."""
Folder = Annotated[str, AfterValidator(_folder)]
"""Below `paths.root`."""
FileName = Annotated[str, AfterValidator(_file_name)]
Repository = Annotated[str, AfterValidator(owner_and_name)]
Commit = Annotated[str, _hexadecimal(40)]
Sha256 = Annotated[str, _hexadecimal(64)]


def _unique(values: tuple[T, ...]) -> tuple[T, ...]:
    if twice := next((value for n, value in enumerate(values) if value in values[:n]), None):
        raise ValueError(f"names {twice} twice")
    return values


List = Annotated[tuple[T, ...], Field(strict=False), AfterValidator(_unique)]
NonEmpty = Annotated[tuple[T, ...], Field(strict=False, min_length=1), AfterValidator(_unique)]
"""Lists in YAML; nothing stands in them twice."""
