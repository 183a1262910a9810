"""From pydantic's errors to what people read: where, what, and why, in the configuration's words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tunnelbridge.config.references import Path, Problem

_REASONS: Final = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text in quotes",
    "string_too_short": "is empty",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "tuple_type": "must be a list",
    "missing": "is missing",
    "finite_number": "must be a finite number",
}
_WITHOUT_VALUE: Final = ("missing", "extra_forbidden")
_KEY: Final = "[key]"
"""What pydantic ends a path with when the table's key is wrong, not its value."""


def from_pydantic(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Return the problems that pydantic found in ``model``'s data."""
    return [_problem(details, model) for details in error.errors(include_url=False)]


def _problem(details: ErrorDetails, model: type[BaseModel]) -> Problem:
    path, kind, value = details["loc"], details["type"], details["input"]
    if path and path[-1] == _KEY:
        return Problem(path[:-1], None, _reason(details))
    if kind == "extra_forbidden":
        return Problem(path, None, _unknown(str(path[-1]), _known_keys(model, path[:-1])))
    if kind in _WITHOUT_VALUE or (kind == "value_error" and isinstance(value, dict | list | tuple)):
        value = None
    return Problem(path, value, _reason(details))


def _reason(details: ErrorDetails) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind in ("literal_error", "enum"):
        return _one_of(context["expected"], details["input"])
    message = _REASONS.get(kind) or details["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:] if kind != "value_error" else message


def _one_of(expected: str, value: Any) -> str:
    words = [word.strip("'") for word in expected.replace(" or ", ", ").split(", ")]
    return f"must be one of {', '.join(words)}{_meant(str(value), words)}"


def _unknown(key: str, known: list[str]) -> str:
    return f"unknown key{_meant(key, known)}; known: {', '.join(known)}"


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _known_keys(model: type[BaseModel], path: Path) -> list[str]:
    """Return the keys of the table that ``path`` leads to."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = _table_in(field.annotation) or model
    return list(model.model_fields)


def _table_in(annotation: Any) -> type[BaseModel] | None:
    """Return the one model that an annotation such as dict[str, Pool] holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _table_in(argument)
        if found is not None:
            return found
    return None
