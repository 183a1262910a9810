"""The allow-list: which outer sources, and which of their tunnels, are listened to.

A rule is ``PREFIX``, ``NAME=NUMBERS`` or several of them with commas: it allows what comes from any
of its prefixes (from anywhere if it has none) in any of its tunnels (in all if it has none). Several
rules allow what any of them allows. The names: ``vni`` of VXLAN, VXLAN-GPE and GENEVE, ``erspan``
the session of ERSPAN II and III, ``key`` of GRE.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Flags
from tunnelbridge.errors import UsageError
from tunnelbridge.wire.layer import Codes, Kind

MAPPED = bytes(10) + b"\xff\xff"

_NAMES: Final = {
    "vni": ((Kind.VXLAN, Kind.VXLAN_GPE, Kind.GENEVE), (1 << 24) - 1),
    "erspan": ((Kind.ERSPAN2, Kind.ERSPAN3), (1 << 10) - 1),
    "key": ((Kind.GRE, Kind.GRE_IP), (1 << 32) - 1),
}
"""Encapsulations that have such a number, and the largest."""
_RANGE: Final = re.compile(r"(\d{1,10})(?:-(\d{1,10}))?", re.ASCII)


class _Prefix(NamedTuple):
    version: int
    prefix: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]

    def holds(self, source: npt.NDArray[np.uint8], is4: Flags) -> Flags:
        matches: Flags = ((source & self.mask) == self.prefix).all(axis=1)
        matches &= is4 == (self.version == 4)
        return matches


class _Tunnels(NamedTuple):
    encapsulations: tuple[Kind, ...]
    first: int
    last: int

    def hold(self, encapsulation: Codes, identifier: Column) -> Flags:
        known = np.isin(encapsulation, self.encapsulations)
        return known & (identifier >= self.first) & (identifier <= self.last)


@dataclass(slots=True)
class _Rule:
    prefixes: list[_Prefix] = field(default_factory=list)
    tunnels: list[_Tunnels] = field(default_factory=list)

    def allows(self, source: npt.NDArray[np.uint8], is4: Flags) -> Flags:
        allowed = np.full(len(source), not self.prefixes)
        for prefix in self.prefixes:
            allowed |= prefix.holds(source, is4)
        return allowed

    def allows_tunnel(self, encapsulation: Codes, identifier: Column) -> Flags:
        allowed = np.full(len(identifier), not self.tunnels)
        for tunnels in self.tunnels:
            allowed |= tunnels.hold(encapsulation, identifier)
        return allowed


class AllowList:
    """The rules of ``--allow``; an empty list allows everyone. Raises UsageError."""

    def __init__(self, rules: Sequence[str]) -> None:
        self._rules = [_parse(text) for text in rules]
        self.names_tunnels = any(rule.tunnels for rule in self._rules)
        """The source alone does not decide: :meth:`allows_tunnels` must be asked as well."""

    def __bool__(self) -> bool:
        return bool(self._rules)

    def allows(self, source: npt.NDArray[np.uint8]) -> Flags:
        """Tell from which of the (n, 16) source addresses anything is allowed."""
        allowed = np.zeros(len(source), np.bool_)
        is4 = _is4(source)
        for rule in self._rules:
            allowed |= rule.allows(source, is4)
        return allowed

    def allows_tunnels(
        self, source: npt.NDArray[np.uint8], encapsulation: Codes, identifier: Column
    ) -> Flags:
        """Tell which frames are allowed, by their source (n, 16) and their outermost tunnel (n,)."""
        allowed = np.zeros(len(source), np.bool_)
        is4 = _is4(source)
        for rule in self._rules:
            tunnels = rule.allows_tunnel(encapsulation, identifier)
            allowed |= rule.allows(source, is4) & tunnels
        return allowed


def _is4(source: npt.NDArray[np.uint8]) -> Flags:
    is4: Flags = (source[:, :12] == np.frombuffer(MAPPED, np.uint8)).all(axis=1)
    return is4


def _parse(text: str) -> _Rule:
    rule = _Rule()
    for term in text.split(","):
        name, equals, numbers = term.partition("=")
        try:
            if equals:
                rule.tunnels.append(_tunnels(name, numbers))
            else:
                rule.prefixes.append(_prefix(term))
        except ValueError as error:
            raise UsageError(f"--allow {text}: {error}") from None
    return rule


def _prefix(text: str) -> _Prefix:
    network = ipaddress.ip_network(text, strict=False)
    prefix, mask = network.network_address.packed, network.netmask.packed
    if network.version == 4:  # addresses are compared as IPv4-mapped IPv6
        prefix, mask = MAPPED + prefix, b"\xff" * 12 + mask
    return _Prefix(network.version, np.frombuffer(prefix, np.uint8), np.frombuffer(mask, np.uint8))


def _tunnels(name: str, numbers: str) -> _Tunnels:
    if name not in _NAMES:
        raise ValueError(f"{name}= is none of {', '.join(_NAMES)}")
    encapsulations, largest = _NAMES[name]
    match = _RANGE.fullmatch(numbers)
    if match is None:
        raise ValueError(f"{name}={numbers} is neither a number nor a range such as 1-99")
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last <= largest:
        raise ValueError(f"{name}={numbers} is not within 0-{largest}, lowest first")
    return _Tunnels(encapsulations, first, last)
