"""Filter rules: what users of Huawei's, AWS's and Juniper's rule tables write, as plain values.

A list of rules is in the order in which it is tried: the first rule that matches decides, and what
no rule matches is not mirrored. Rules look at the IP packet behind any VLAN tags; in IPv6 the
protocol is the one behind the extension headers. A rule that names no family, protocol, address or
port matches every frame, ARP too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Literal

Direction = Literal["both", "in", "out"]
Family = Literal[0, 4, 6]
Network = IPv4Network | IPv6Network
Ranges = tuple[tuple[int, int], ...]
"""Port ranges, both ends included."""

TURNED: Final[dict[Direction, Direction]] = {"in": "out", "out": "in", "both": "both"}
"""The other direction."""
MAX_PORT: Final = 65535
PORT_PROTOCOLS: Final = (6, 17, 33, 132, 136)
"""TCP, UDP, DCCP, SCTP and UDP-Lite: source and destination port come first in their headers."""

PROTOCOLS: Final = {
    "icmp": 1, "igmp": 2, "ipip": 4, "tcp": 6, "udp": 17, "dccp": 33, "ipv6": 41, "gre": 47, "esp": 50,
    "ah": 51, "icmpv6": 58, "eigrp": 88, "ospf": 89, "etherip": 97, "pim": 103, "vrrp": 112,
    "l2tp": 115, "sctp": 132, "udplite": 136, "mpls": 137,
}  # fmt: skip
"""IANA protocol numbers by the names that rule tables use."""
_ALIASES: Final = {"icmp6": "icmpv6", "ipv4": "ipip", "udp-lite": "udplite", "ipv6-icmp": "icmpv6"}
_ANY: Final = ("all", "any", "-1")
_FAMILY_NAMES: Final = {4: "IPv4", 6: "IPv6"}


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; ``None``, family 0 and direction ``both`` mean any.

    Raises ValueError for fields that contradict each other, so that no packet could match.
    """

    direction: Direction = "both"
    accept: bool = True
    family: Family = 0
    protocol: int | None = None
    source: Network | None = None
    destination: Network | None = None
    source_ports: Ranges | None = None
    destination_ports: Ranges | None = None
    name: str = ""

    def __post_init__(self) -> None:
        for field, network in (("source", self.source), ("destination", self.destination)):
            if network is not None and network.version != self.any_family:
                raise ValueError(f"{field} {network} is not {_FAMILY_NAMES[self.any_family]}")
        if self.has_ports and self.protocol not in (None, *PORT_PROTOCOLS):
            names = ", ".join(
                name for name, number in PROTOCOLS.items() if number in PORT_PROTOCOLS
            )
            raise ValueError(f"only {names} have ports, protocol {self.protocol} has none")
        if () in (self.source_ports, self.destination_ports):
            raise ValueError("no ports at all; None stands for all")

    @property
    def any_family(self) -> int:
        """The IP version that the family or an address demands: 4, 6, or 0 for any frame."""
        if self.family:
            return self.family
        network = self.source or self.destination
        return network.version if network else 0

    @property
    def has_ports(self) -> bool:
        """Whether only packets with known ports match."""
        return self.source_ports is not None or self.destination_ports is not None

    @property
    def matches_all(self) -> bool:
        """Whether every frame of the rule's direction matches, IP or not."""
        return not (self.any_family or self.has_ports) and self.protocol is None


def swapped(rules: Sequence[Rule]) -> list[Rule]:
    """Return the rules with inbound and outbound exchanged: the view of a guest on its cable."""
    return [replace(rule, direction=TURNED[rule.direction]) for rule in rules]


def reply_to(rule: Rule) -> Rule:
    """Return the rule that matches the packets which answer those that ``rule`` matches."""
    return replace(
        rule,
        direction=TURNED[rule.direction],
        source=rule.destination,
        destination=rule.source,
        source_ports=rule.destination_ports,
        destination_ports=rule.source_ports,
    )


def protocol_number(protocol: str | int) -> int | None:
    """Return the IP protocol number of a name or number; None for any protocol.

    Raises ValueError, whose text says what is expected.
    """
    text = str(protocol).strip().lower()
    text = _ALIASES.get(text, text)
    if text in _ANY:
        return None
    if text in PROTOCOLS:
        return PROTOCOLS[text]
    if text.isascii() and text.isdecimal() and int(text) <= 255:
        return int(text)
    raise ValueError(f"must be all, a number from 0 to 255 or one of {', '.join(PROTOCOLS)}")


def parse_ports(text: str | int) -> Ranges | None:
    """Return the ranges of ``all``, ``80``, ``80-90`` or several with commas between them.

    None stands for every port: a packet without ports matches too. Ranges come sorted and joined.
    Raises ValueError, whose text says what is wrong.
    """
    text = str(text).strip().lower()
    if text in _ANY:
        return None
    ranges = _joined(_range(part.strip()) for part in text.split(","))
    return None if ranges == ((0, MAX_PORT),) else ranges


def _range(part: str) -> tuple[int, int]:
    first, dash, last = part.partition("-")
    low, high = _port(first, part), _port(last, part) if dash else _port(first, part)
    if low > high:
        raise ValueError(f"{part} ends before it begins")
    return low, high


def _port(text: str, part: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdecimal()) or int(text) > MAX_PORT:
        raise ValueError(f"{part!r} is not all, a port (0 to {MAX_PORT}) or a range (80-90)")
    return int(text)


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return the ranges sorted, with those that touch or overlap made one."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(high, joined[-1][1])
        else:
            joined.append((low, high))
    return tuple(joined)
