"""What every section of `params.yaml` is made of: strict types, ranges, and a line of documentation for each setting."""

from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting is unknown, missing, of the wrong type, or out of range. The message begins with its path in `params.yaml`,
    or with the preset's file."""


class Section(BaseModel):
    """A part of `params.yaml`. Unknown keys, values of another type, NaN and infinity are refused; a section never changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _none(cls, value: Any, info: ValidationInfo) -> Any:
        """`none` written out, for settings that may be None: an empty value leaves it to the preset."""
        optional = info.field_name is not None and type(None) in get_args(cls.model_fields[info.field_name].annotation)
        return None if optional and value == "none" else value


Count = Annotated[int, Field(ge=1)]
Number = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?$")]
"""Names of sets and variants become names of files and of DVC's stages."""


def _unique(values: tuple[T, ...]) -> tuple[T, ...]:
    if twice := next((value for n, value in enumerate(values) if value in values[:n]), None):
        raise ValueError(f"names {twice} twice")
    return values


List = Annotated[tuple[T, ...], Field(strict=False), AfterValidator(_unique)]
NonEmpty = Annotated[tuple[T, ...], Field(strict=False, min_length=1), AfterValidator(_unique)]
"""Lists in YAML; nothing stands in them twice."""
