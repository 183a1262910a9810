"""What several kinds of documents have: JSON objects in a row, networks, port ranges, MAC addresses.

What a document says wrongly raises ValueError with the reason.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from typing import Any


def json_objects(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects of ``text``, which may stand one behind the other."""
    decoder, found, at = json.JSONDecoder(), [], _skip(text, 0)
    while at < len(text):
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}") from None
        found += value if isinstance(value, list) else [value]
        at = _skip(text, end)
    if not all(isinstance(one, dict) for one in found):
        raise ValueError("is not made of JSON objects")
    return found


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace() | (text[at] == "\ufeff"):
        at += 1
    return at


def listed(objects: list[dict[str, Any]], *keys: str) -> Iterator[dict[str, Any]]:
    """Yield what the objects hold under ``keys``: one table each, or lists of them."""
    for one in objects:
        for key in keys:
            value = one.get(key)
            for element in value if isinstance(value, list) else [value]:
                if isinstance(element, dict):
                    yield element


def by_id(objects: Iterator[dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    """Return the tables by what each has under ``key``."""
    return {str(one[key]): one for one in objects if key in one}


def network(value: Any) -> str | None:
    """Return a prefix without bits behind it, as clouds store it; None where there is none."""
    if value in (None, ""):
        return None
    try:
        return str(ipaddress.ip_network(str(value), strict=False))
    except ValueError:
        raise ValueError(f"{value} is not a network") from None


def whole(value: Any) -> int | None:
    """Return a number that may come as text; None where there is none."""
    if value in (None, ""):
        return None
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value} is not a whole number") from None


def in_url(address: str) -> str:
    """Return an address as URLs have it."""
    return f"[{address}]" if ":" in address else address


def unknown_host(identifier: str) -> str:
    """Return a host name for something whose address a document does not say.

    RFC 2606 §2: names under .invalid never resolve, so that nothing is sent before it is edited.
    """
    kept = "".join(each if each.isalnum() or each == "-" else "-" for each in identifier)
    return f"{kept.strip('-').lower() or 'target'}.invalid"
