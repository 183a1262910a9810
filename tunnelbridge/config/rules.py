"""Filters and policies' rules: the nine fields of rule tables, as users write them."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Final, Literal

from pydantic import model_validator

from tunnelbridge.clone.rules import Direction, Family, Rule, parse_ports, protocol_number
from tunnelbridge.config.values import Between, Int, Name, Ports, Prefix, Protocol, Table

_FAMILIES: Final[dict[str, Family]] = {"any": 0, "ipv4": 4, "ipv6": 6}
_SIDES: Final[dict[Direction, str]] = {"in": "inbound", "out": "outbound", "both": ""}


class Match(Table):
    """What a packet must be like; each field that is left out matches every packet."""

    family: Literal["any", "ipv4", "ipv6"] = "any"
    """The packet's IP version."""
    protocol: Protocol = "all"
    """Name or number of the protocol behind the IP header, or all."""
    source: Prefix = "all"
    """Prefix of the source address, or all."""
    source_ports: Ports = "all"
    """Source ports: all, 80, 80-90, or several with commas between them."""
    destination: Prefix = "all"
    """Prefix of the destination address, or all."""
    destination_ports: Ports = "all"
    """Destination ports, as source_ports."""

    @model_validator(mode="after")
    def _fields_agree(self) -> Match:
        self.rule("", accept=True)  # raises ValueError where no packet could match
        return self

    def rule(self, name: str, accept: bool, direction: Direction = "both") -> Rule:
        """Return the rule that matches what this describes."""
        return Rule(
            accept=accept,
            direction=direction,
            family=_FAMILIES[self.family],
            protocol=protocol_number(self.protocol),
            source=None if self.source == "all" else ipaddress.ip_network(self.source),
            destination=None
            if self.destination == "all"
            else ipaddress.ip_network(self.destination),
            source_ports=parse_ports(self.source_ports),
            destination_ports=parse_ports(self.destination_ports),
            name=name,
        )


class FilterRule(Match):
    """One row of a filter's rule table (Huawei and AWS traffic mirroring)."""

    priority: Annotated[Int, Between(1, 65535)]
    """The lowest is tried first; rules with the same one are tried in the order of the file."""
    action: Literal["accept", "reject"]
    """accept: packets that match are mirrored; reject: they are not. The first match decides."""


class Filter(Table):
    """Rule tables for each direction, seen from the source; what no rule matches is not mirrored."""

    inbound: tuple[FilterRule, ...] = ()
    """Rules for packets that come in at the source."""
    outbound: tuple[FilterRule, ...] = ()
    """Rules for packets that go out at the source."""

    def rules(self) -> list[Rule]:
        """Return inbound then outbound rules, each in the order in which they are tried."""
        return [*_ordered(self.inbound, "in"), *_ordered(self.outbound, "out")]


class SecondaryAction(Table):
    """What is done beside the rule's own action (CN2's secondaryAction)."""

    mirror: str
    """A target: a pool, destination, tunnel, member or label selector."""


class PolicyRule(Match):
    """One rule of a policy (a CN2 security policy's)."""

    name: Name | None = None
    """Shown by explain; without it the rule's number is."""
    action: Literal["pass", "deny"] = "pass"
    """deny: the policy's own secondary_action does not apply, only the rule's."""
    secondary_action: SecondaryAction | None = None
    """Where flows that this rule matches are mirrored to, in place of the policy's."""


def _ordered(rules: tuple[FilterRule, ...], side: Direction) -> list[Rule]:
    numbered = sorted(enumerate(rules, 1), key=lambda pair: pair[1].priority)
    return [
        rule.rule(
            f"{_SIDES[side]} rule {number} (priority {rule.priority})",
            rule.action == "accept",
            side,
        )
        for number, rule in numbered
    ]
