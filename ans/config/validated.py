"""Values -> a checked section, or an error that names the setting."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from ans.config.fields import ConfigError
from ans.config.sections import suggestion

REASONS = {
    "bool_type": "expected true or false",
    "int_type": "expected an integer",
    "float_type": "expected a number",
    "string_type": "expected a text",
    "tuple_type": "expected a list",
    "dict_type": "expected a section",
    "model_type": "expected a section",
    "invalid_key": "keys must be texts",
    "literal_error": "expected {expected}",
    "finite_number": "must be finite",
    "too_short": "must not be empty",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
}
"""What pydantic's errors are called here."""

Path = tuple[str, ...]


def dotted(path: Path) -> str:
    """Return the path of a setting as the user writes it."""
    return ".".join(path)


def validated(kind: Any, values: Any, section: Path, place: Callable[[Path], str] = dotted, partial: bool = False) -> Any:
    """Return `values` as `kind`, the section at the path `section`. Raises `ConfigError` for the first that cannot be used; `place` says
    where the user finds it. Of a `partial` section, what is missing may stand elsewhere."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        wrong = [of for of in error.errors() if not (partial and of["type"] == "missing")]
        if wrong:
            raise ConfigError(_message(wrong[0], section, place)) from None


def _message(error: ErrorDetails, section: Path, place: Callable[[Path], str]) -> str:
    path = (*section, *(str(part) for part in error["loc"] if part != "[key]"))
    reason = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and ": " in reason and reason.partition(": ")[0].isidentifier():
        key, _, reason = reason.partition(": ")  # a rule between several settings names the one that it is about
        path = (*path, key)
    if error["type"] == "extra_forbidden":
        return f"{place(path)}: unknown key{suggestion(dotted(path))}"
    if error["type"] == "missing":
        return f"{dotted(path)}: missing"
    if error["type"] in REASONS:
        limits = {name: f"{of:g}" if isinstance(of, float) else of for name, of in error.get("ctx", {}).items()}
        reason = REASONS[error["type"]].format(**limits)
    given = error.get("input")
    return f"{place(path)}: {reason}" + ("" if isinstance(given, Mapping) else f", found {given!r:.200}")
