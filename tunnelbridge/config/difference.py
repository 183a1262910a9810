"""What a reload changes, for people: one line for each table that came, went or is different."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tunnelbridge.config.mirror import Mirror

_SINGULAR: Final = {
    "tunnels": "tunnel",
    "arp": "arp",
    "fdb": "fdb",
    "pools": "pool",
    "filters": "filter",
    "sessions": "session",
    "policies": "policy",
    "destinations": "destination",
}
_IDENTITIES: Final = ("ip", "name")
"""What tells an element of a list from the others; without it its place does."""


def difference(old: Mirror, new: Mirror) -> list[str]:
    """Return ``+`` added, ``-`` removed and ``~`` changed, in the order of the model's tables."""
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    lines: list[str] = []
    for key in before:
        one, other = before[key], after[key]
        if key in _SINGULAR:
            lines += _tables(_SINGULAR[key], one, other)
        elif key == "stand_in" and None in (one, other) and one != other:
            lines.append("+ stand_in" if one is None else "- stand_in")
        elif one != other:
            lines.append(f"~ {key}: {', '.join(_changes(one, other, ''))}")
    return lines


def _tables(kind: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name in old | new:
        if name not in old:
            yield f"+ {kind} {name}{_whole(new[name])}"
        elif name not in new:
            yield f"- {kind} {name}{_whole(old[name])}"
        elif old[name] != new[name]:
            yield f"~ {kind} {name}: {', '.join(_changes(old[name], new[name], ''))}"


def _whole(value: Any) -> str:
    """Return what is behind a name, where that is short."""
    return "" if isinstance(value, dict) else f" = {_shown(value)}"


def _changes(old: Any, new: Any, path: str) -> Iterator[str]:
    """Yield ``path old → new`` for each value that differs."""
    if _has_elements(old) and _has_elements(new):
        old, new = _by_identity(old), _by_identity(new)
    if not (isinstance(old, dict) and isinstance(new, dict)):
        yield f"{path} {_shown(old)} → {_shown(new)}".lstrip()
        return
    changed = list(_changes_of_keys(old, new, path))
    yield from changed or [f"{path} in another order".lstrip()]


def _changes_of_keys(old: dict[str, Any], new: dict[str, Any], path: str) -> Iterator[str]:
    for key in old | new:
        place = f"{path}.{key}" if path else key
        if key in old and key in new:
            if old[key] != new[key]:
                yield from _changes(old[key], new[key], place)
        else:
            yield f"{place} {'added' if key in new else 'removed'}"


def _has_elements(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(element, dict) for element in value)


def _by_identity(elements: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for key in _IDENTITIES:
        names = [str(element[key]) for element in elements if element.get(key)]
        if elements and len(set(names)) == len(elements):
            return dict(zip(names, elements, strict=True))
    return {str(number): element for number, element in enumerate(elements)}


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}={_shown(one)}" for key, one in value.items()) or "none"
    words = {None: "none", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
