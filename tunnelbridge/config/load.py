"""Read a configuration file; every mistake is one line: ``FILE: KEY.PATH = VALUE: reason``.

Elements of lists are counted from 0, as in ``pools.ids.members[0].weight``.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from tunnelbridge.config.mirror import Mirror
from tunnelbridge.config.problems import from_pydantic
from tunnelbridge.config.references import Problem, problems
from tunnelbridge.errors import UsageError

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_PLACE: Final = re.compile(r"(.*) \(at (.*)\)", re.DOTALL)
_LONGEST_VALUE: Final = 80


def load(path: str | Path) -> Mirror:
    """Return the configuration in a file; raises UsageError with a line for each mistake."""
    try:
        text = Path(path).read_bytes().decode()
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at octet {error.start}, as TOML must be") from None
    return loads(text, str(path))


def loads(text: str, name: str = "configuration") -> Mirror:
    """Return the configuration in ``text``; mistakes name the file ``name``."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name}: {_syntax(str(error), text)}") from None
    try:
        mirror = Mirror.model_validate(data)
    except ValidationError as error:
        raise _mistakes(name, from_pydantic(error, Mirror)) from None
    found = problems(mirror)
    if found:
        raise _mistakes(name, found)
    return mirror


def schema() -> dict[str, Any]:
    """Return the JSON schema of the configuration, with what every key means."""
    return Mirror.model_json_schema()


def _mistakes(name: str, found: list[Problem]) -> UsageError:
    lines = dict.fromkeys(f"{name}: {_line(problem)}" for problem in found)
    return UsageError("\n".join(lines))


def _line(problem: Problem) -> str:
    path = key_path(problem.path)
    value = "" if problem.value is None else f" = {_shown(problem.value)}"
    return f"{path}{value}: {problem.reason}" if path else problem.reason


def key_path(path: tuple[str | int, ...]) -> str:
    """Return a path as TOML writes it, list elements in brackets."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            key = part if _BARE_KEY.fullmatch(part) else json.dumps(part, ensure_ascii=False)
            text += f".{key}" if text else key
    return text


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def _syntax(message: str, text: str) -> str:
    """Put the place first, as everywhere; the end of the document is its last line."""
    found = _PLACE.fullmatch(message)
    reason, place = found.groups() if found else (message, "")
    if not place.startswith("line "):
        place = f"line {len(text.splitlines())} (the end)"
    return f"{place}: {reason[:1].lower()}{reason[1:]}"
