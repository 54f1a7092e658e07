"""What every section of `params.yaml` is made of: strict types, ranges, and a line of documentation for each setting."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class ConfigError(ValueError):
    """A setting is unknown, missing, of the wrong type, or out of range. The message begins with its path in `params.yaml`."""


class Section(BaseModel):
    """A part of `params.yaml`. Unknown keys, values of another type, NaN and infinity are refused; a section never changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


Count = Annotated[int, Field(ge=1)]
Number = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?$")]
"""Names of sets and variants become names of files and of DVC's stages."""

Texts = Annotated[tuple[str, ...], Field(strict=False)]
"""A list of texts in YAML."""

NONE = BeforeValidator(lambda value: None if value == "none" else value)
"""For settings that may be None: `none` written out says so, where an empty value leaves it to the preset."""
