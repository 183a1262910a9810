"""Clone pools with their members, destinations that select among them, and the stand-in."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tunnelbridge.config.values import (
    Address,
    Between,
    Bool,
    Distinct,
    Float,
    Int,
    Interface,
    Labels,
    Mac,
    Network,
    Port,
    Several,
    Some,
    Table,
)

Distribution = Literal["flow", "round-robin", "weighted-round-robin", "source-ip", "all"]
Per = Literal["packet", "flow"]
Rewrite = Literal["mac", "none", "mac+ip"]


class Health(Table):
    """How a pool tells that a member is down; a listener that never answers needs no check."""

    check: Literal["off", "route", "icmp", "heartbeat"] = "off"
    """off; route: there is a way to it; icmp: echo; heartbeat: as the collector answers it."""
    interval: Annotated[Float, Between(0.1, 3600)] = 1.0
    """Seconds from one probe to the next."""
    timeout: Annotated[Float, Between(0.1, 3600)] = 1.0
    """Seconds to wait for an answer."""
    fall: Annotated[Int, Between(1, 100)] = 3
    """Probes in a row without answer that take a member down."""
    rise: Annotated[Int, Between(1, 100)] = 2
    """Answers in a row that bring it back."""
    port: Port = 8998
    """UDP port of the collector's heartbeat."""


class Member(Table):
    """One analyser of a pool.

    Clones reach it through ``via``, or by static ARP and FDB, or on layer 2 in ``subnet``.
    """

    ip: Address
    """Names the member; with subnet or via a dummy one will do."""
    mac: Mac | None = None
    """In place of an [arp] entry."""
    via: Annotated[tuple[str, ...], Several, Some, Distinct] | None = None
    """A tunnel (name or URL), or a list of them: each gets every clone."""
    subnet: Network | None = None
    """A network on one of our interfaces, on which clones leave as plain frames (NSX)."""
    network: str | None = None
    """The network's name elsewhere; only shown."""
    weight: Annotated[Int, Between(0, 65535)] = 1
    """Its share beside the others; 0 drains it."""
    labels: Labels = Field(default_factory=dict)
    """What label selectors go by."""


class Pool(Table):
    """A clone pool."""

    members: Annotated[tuple[Member, ...], Some]
    """The analysers."""
    distribution: Distribution = "flow"
    """How clones are shared among members; flow keeps both directions of a flow together."""
    per: Per = "packet"
    """For the two round robins: what takes a turn."""
    rewrite: Rewrite | None = None
    """What a clone gets of its member; by default its MAC unless only via leads there."""
    preserve_client_ip: Bool = False
    """Put the client's address back into clones of source-NATed flows."""
    health: Health = Health()
    """How a member is found to be down."""

    @model_validator(mode="after")
    def _members_are_distinct(self) -> Pool:
        seen = set()
        for member in self.members:
            if member.ip in seen:
                raise ValueError(f"member {member.ip} stands in it twice: give one a weight of 2")
            seen.add(member.ip)
        return self


class Destination(Table):
    """Where a policy mirrors to (CN2's MirrorDestination): members by label, or one analyser."""

    labels: Labels = Field(default_factory=dict)
    """Select members of all pools that have every one of these labels."""
    select: Literal["one", "hash", "all"] = "one"
    """Which of several: the first by address, one by the flow's hash, or all of them."""
    external_analyzer: Bool = False
    """The analyser is analyzer_ip, and no pool's member."""
    analyzer_ip: Address | None = None
    """The external analyser's address."""
    juniper_header: Bool | None = None
    """true: the Juniper header over UDP; false: next_hop decides. By default true for an external
    analyser; members that labels select are reached as their pool says."""
    udp_port: Port = 8099
    """With the Juniper header: the analyser's port."""
    next_hop: Literal["dynamic", "static"] = "dynamic"
    """Without the Juniper header: dynamic by static ARP and FDB; static through VXLAN to vtep."""
    vtep: Address | None = None
    """Static next hop: the VXLAN tunnel's far end."""
    vni: Annotated[Int, Between(0, 0xFFFFFF)] | None = None
    """Static next hop: the VXLAN network identifier."""
    mac: Mac | None = None
    """Static next hop: the clones' destination MAC address."""

    @property
    def has_header(self) -> bool:
        """Whether clones get the Juniper header."""
        return self.external_analyzer if self.juniper_header is None else self.juniper_header

    @model_validator(mode="after")
    def _says_one_thing(self) -> Destination:
        if self.external_analyzer != (self.analyzer_ip is not None):
            raise ValueError("external_analyzer = true and analyzer_ip go together")
        if self.external_analyzer == bool(self.labels):
            raise ValueError(
                "needs labels, or external_analyzer = true with analyzer_ip; one of them"
            )
        if "udp_port" in self.model_fields_set and not self.has_header:
            raise ValueError("udp_port is the Juniper header's: add juniper_header = true")
        static = self.vtep, self.vni, self.mac
        if self.next_hop == "static":
            if self.juniper_header is not False or None in static:
                raise ValueError(
                    'next_hop = "static" needs juniper_header = false, and vtep, vni and mac'
                )
        elif static != (None, None, None):
            raise ValueError('vtep, vni and mac need next_hop = "static"')
        return self


class StandIn(Table):
    """Answer ARP and IPv6 neighbour solicitation in the place of members that are elsewhere."""

    interface: Interface
    """The interface on the LAN that should find the members."""
    members: Annotated[tuple[Address, ...], Some, Distinct]
    """Members to stand in for: their MACs are the pools' or [arp]'s."""
    announce: Annotated[Float, Between(1, 86400)] = 30.0
    """Seconds from one announcement to the next."""
