"""What a user calls sources: ``eth0``, ``veth*``, ``NETNS:eth*``, ``any``."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

_GLOB = frozenset("*?[")


class SourcePattern(NamedTuple):
    """An interface, or those whose names match, in a network namespace (None: our own)."""

    namespace: str | None
    name: str

    @property
    def is_glob(self) -> bool:
        """More than one interface may match, or none at the moment."""
        return not _GLOB.isdisjoint(self.name)

    def matches(self, namespace: str | None, interface: str) -> bool:
        """Tell whether an interface is meant; a glob never means the loopback."""
        if namespace != self.namespace:
            return False
        return interface == self.name or (
            self.is_glob and interface != "lo" and fnmatchcase(interface, self.name)
        )


def parse_source(text: str) -> SourcePattern:
    """Return what ``[NETNS:]NAME`` means; ``any`` is every interface."""
    namespace, colon, name = text.rpartition(":")
    return SourcePattern(namespace if colon else None, "*" if name == "any" else name)


def applies(patterns: Iterable[str], namespace: str | None, interface: str) -> bool:
    """Tell whether one of the patterns means this interface."""
    return any(parse_source(each).matches(namespace, interface) for each in patterns)
