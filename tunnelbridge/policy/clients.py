"""Clients' addresses behind source NAT (``preserve_client_ip``), by what conntrack tells.

A feed and a table for each network namespace in which such sessions have sources. The data path reads
the feeds before each batch, so that the connection of a packet is known before the packet is looked at.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import NamedTuple

from tunnelbridge.clone.nat import NatTable
from tunnelbridge.errors import UsageError
from tunnelbridge.linux.conntrack import ConntrackFeed
from tunnelbridge.policy.plan import SessionPlan
from tunnelbridge.policy.sources import parse_source


class _Followed(NamedTuple):
    feed: ConntrackFeed
    table: NatTable


def _learn_what_is_there(followed: _Followed) -> None:
    """Take in the connections that began before us, before the first packet is captured."""
    complete = False
    while not complete:
        changes = followed.feed.read()
        followed.table.apply(changes, monotonic_ns())
        complete = changes.complete


class Clients:
    """The tables of all namespaces that are asked for."""

    def __init__(self) -> None:
        self._followed: dict[str | None, _Followed] = {}

    def table(self, session: SessionPlan) -> NatTable:
        """Return the table for a session's sources; raises UserError where conntrack cannot be read."""
        namespaces = {parse_source(each).namespace for each in session.sources}
        if len(namespaces) > 1:
            raise UsageError(
                f"session {session.name}: preserve_client_ip needs sources in one network namespace,"
                " because addresses are translated in each by itself: make a session for each"
            )
        (namespace,) = namespaces
        if namespace not in self._followed:
            followed = self._followed[namespace] = _Followed(ConntrackFeed(namespace), NatTable())
            _learn_what_is_there(followed)
        return self._followed[namespace].table

    def read(self) -> None:
        """Take in what has changed since the last batch; never waits."""
        for feed, table in self._followed.values():
            table.apply(feed.read(), monotonic_ns())

    def refresh(self) -> None:
        """Ask for all connections again, for ends that were not told."""
        for feed, _ in self._followed.values():
            feed.refresh()

    def close(self) -> None:
        """Close the feeds."""
        for feed, _ in self._followed.values():
            feed.close()
