"""The whole configuration, one table a field."""

from __future__ import annotations

from pydantic import Field

from tunnelbridge.config.pools import Destination, Pool, StandIn
from tunnelbridge.config.rules import Filter
from tunnelbridge.config.sessions import Policy, Session
from tunnelbridge.config.tunnel import MtuPolicy
from tunnelbridge.config.values import Arp, Fdb, Name, Table, TunnelUrl


class Mirror(Table):
    """What ``tunnelbridge send --config`` does.

    This checks each value by itself; ``load`` checks also that what they name exists.
    """

    mtu: MtuPolicy = MtuPolicy.FRAGMENT
    """What happens to clones that the path cannot carry whole, for tunnels that do not say."""
    tunnels: dict[Name, TunnelUrl] = Field(default_factory=dict)
    """Names for tunnels: ENCAP://REMOTE[:PORT][?option=value&…]."""
    arp: Arp = Field(default_factory=dict)
    """Static ARP and neighbour discovery: a member's IP address to its MAC address."""
    fdb: Fdb = Field(default_factory=dict)
    """Static FDB: a MAC address to its tunnel (name or URL), or to several: each gets every clone."""
    pools: dict[Name, Pool] = Field(default_factory=dict)
    """Clone pools."""
    filters: dict[Name, Filter] = Field(default_factory=dict)
    """Rule tables that sessions name."""
    sessions: dict[Name, Session] = Field(default_factory=dict)
    """Mirror sessions."""
    policies: dict[Name, Policy] = Field(default_factory=dict)
    """Security policies that mirror flows."""
    destinations: dict[Name, Destination] = Field(default_factory=dict)
    """Where policies mirror to, besides pools and tunnels."""
    stand_in: StandIn | None = None
    """Answer ARP for members on a LAN where something insists on layer-2 adjacency."""

    def warnings(self) -> list[str]:
        """Return what is allowed and yet looks like a mistake, one line each."""
        from tunnelbridge.config.warnings import warnings

        return warnings(self)

    def summary(self) -> list[str]:
        """Return what is mirrored and to whom, in a few lines."""
        from tunnelbridge.config.summary import summary

        return summary(self)

    def difference(self, other: Mirror) -> list[str]:
        """Return what ``other`` changes, one line each: + added, - removed, ~ changed."""
        from tunnelbridge.config.difference import difference

        return difference(self, other)
