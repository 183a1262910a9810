"""A configuration while an importer fills it: names that are ours, and a list of what was lost."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, Final

import tomli_w
from pydantic import ValidationError

from tunnelbridge.clone.neighbours import is_member
from tunnelbridge.config.load import key_path
from tunnelbridge.config.problems import from_pydantic
from tunnelbridge.config.tunnel import LONGEST_INTERFACE
from tunnelbridge.config.values import Table

_ORDER: Final = (
    "tunnels",
    "arp",
    "fdb",
    "pools",
    "filters",
    "sessions",
    "policies",
    "destinations",
)
_NAMED_TOGETHER: Final = (("pools", "destinations", "tunnels"), ("sessions", "policies"))
"""Tables in which one name must not stand twice."""
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]+")
SHORTEST_PACKET: Final = 14
"""Octets: an Ethernet header, the least that a clone keeps."""


class Draft:
    """Tables by name, and the list of what could not be expressed."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Any]] = defaultdict(dict)
        self.issues: list[str] = []
        self.leaking: set[str] = set()
        """Filters, by their identifiers elsewhere, that lost a rule which rejects."""
        self._stand_ins: dict[str, str] = {}

    def lost(self, what: str, why: str) -> None:
        """Note what could not be expressed, and why or what to do; in one line."""
        line = " ".join(f"{what}: {why}".split())
        if line not in self.issues:
            self.issues.append(line)

    def add(self, table: str, name: str, value: Any) -> str:
        """Put ``value``, without what is None, under a free name that is allowed; return it."""
        cleaned = _NOT_IN_NAMES.sub("-", name).strip("-_.") or table
        if is_member(cleaned):  # an address would be taken for a member
            cleaned = f"{table}-{cleaned}"
        alike = next((group for group in _NAMED_TOGETHER if table in group), (table,))
        taken = {each for one in alike for each in self.tables[one]}
        wanted, number = cleaned, 2
        while wanted in taken:
            wanted, number = f"{cleaned}-{number}", number + 1
        self.tables[table][wanted] = without_none(value) if isinstance(value, dict) else value
        return wanted

    def valid(self, model: type[Table], value: dict[str, Any], what: str) -> dict[str, Any] | None:
        """Return ``value`` without what is None, or None, noted, where the model refuses it."""
        refused = refusals(model, value)
        for reason in refused:
            self.lost(f"{what} is left out", reason)
        return None if refused else without_none(value)

    def has_filter(self, identifier: str, is_there: bool, what: str) -> bool:
        """Tell, and note if not, whether a session's filter keeps out what it should."""
        if not is_there:
            self.lost(what, f"filter {identifier} is not in the document; it is left disabled")
        elif identifier in self.leaking:
            self.lost(what, f"filter {identifier} lost a rule that rejects; it is left disabled")
        return is_there and identifier not in self.leaking

    def packet_length(self, octets: int | None, what: str) -> int | None:
        """Return how much of a packet to keep; less than an Ethernet header cannot be."""
        if octets is not None and octets < SHORTEST_PACKET:
            self.lost(
                what, f"packet length {octets} became {SHORTEST_PACKET}, the shortest there is"
            )
            return SHORTEST_PACKET
        return octets

    def stands_for(self, identifier: str, what: str) -> str:
        """Return an interface name that stands for one elsewhere, and note that it must be edited.

        No such interface exists, so nothing is mirrored until somebody writes the real name.
        """
        cleaned = _NOT_IN_NAMES.sub("-", identifier).strip("-") or "EDIT-ME"
        name, number = cleaned[:LONGEST_INTERFACE], 1
        while self._stand_ins.setdefault(name, identifier) != identifier:
            number += 1
            name = f"{cleaned[: LONGEST_INTERFACE - 3]}-{number}"
        self.lost(what, f"{name} stands for {identifier}: write this host's interface in its place")
        return name

    def toml(self) -> str:
        """Return the configuration."""
        tables = {name: self.tables[name] for name in _ORDER if self.tables[name]}
        return tomli_w.dumps(tables)


def refusals(model: type[Table], value: dict[str, Any]) -> list[str]:
    """Return why the model does not take ``value``, of which what is None is left out."""
    try:
        model.model_validate(without_none(value))
    except ValidationError as error:
        return [
            f"{key_path(problem.path)} {problem.reason}".strip()
            for problem in from_pydantic(error, model)
        ]
    return []


def without_none(value: dict[str, Any]) -> dict[str, Any]:
    """Return ``value`` without the keys whose value is None."""
    return {key: one for key, one in value.items() if one is not None}
