"""Clients' addresses behind source NAT (``preserve_client_ip``), by what conntrack tells.

A feed and a table for each network namespace in which such sessions have sources. The data path reads
the feeds before each batch, so that the connection of a packet is known before the packet is looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic_ns

import numpy as np

from tunnelbridge.clone.nat import NatTable
from tunnelbridge.connections import CONNECTION, Changes
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux.conntrack import ConntrackFeed
from tunnelbridge.linux.namespace import identity
from tunnelbridge.policy.plan import SessionPlan
from tunnelbridge.policy.sources import parse_source


class _Followed:
    """What is known of a namespace: a table that stays, and a feed while the namespace is there."""

    def __init__(self, namespace: str | None) -> None:
        self.table = NatTable()
        self._namespace = namespace
        self._identity: tuple[int, int] | None = None
        self._feed: ConntrackFeed | None = None

    def start(self) -> None:
        """Follow a namespace that is there; raises UserError where conntrack cannot be read."""
        if self._namespace is not None:
            self._identity = identity(self._namespace)
            if self._identity is None:  # it may come
                return
        self._feed = ConntrackFeed(self._namespace)
        nothing = np.zeros(0, CONNECTION)
        self.table.apply(Changes(nothing, nothing, restarted=True), monotonic_ns())
        while not self.read():  # the connections that began before us, before the first packet
            pass

    def look(self) -> None:
        """Let go of a namespace that is gone, or it would live on; take the one of its name now."""
        if self._namespace is None or identity(self._namespace) == self._identity:
            return
        self.close()
        try:
            self.start()
        except UserError:  # gone again, or not there yet
            self._identity = None

    def read(self) -> bool:
        """Take in what has changed; tell whether everything there is has been told."""
        if self._feed is None:
            return True
        changes = self._feed.read()
        self.table.apply(changes, monotonic_ns())
        return changes.complete

    def refresh(self) -> None:
        if self._feed is not None:
            self._feed.refresh()

    def close(self) -> None:
        feed, self._feed = self._feed, None
        if feed is not None:
            feed.close()


class Clients:
    """The tables of all namespaces that are asked for."""

    def __init__(self) -> None:
        self._followed: dict[str | None, _Followed] = {}

    def table(self, session: SessionPlan) -> NatTable:
        """Return the table for a session's sources; raises UserError where conntrack cannot be read."""
        namespaces = _namespaces(session)
        if len(namespaces) > 1:
            raise UsageError(
                f"session {session.name}: preserve_client_ip needs sources in one network namespace,"
                " because addresses are translated in each by itself: make a session for each"
            )
        (namespace,) = namespaces
        if namespace not in self._followed:
            followed = _Followed(namespace)
            followed.start()
            self._followed[namespace] = followed
        return self._followed[namespace].table

    def keep(self, sessions: Iterable[SessionPlan]) -> None:
        """Follow no namespace any more in which none of these sessions asks for clients."""
        asking = [
            each for each in sessions if any(group.preserve_client_ip for group in each.groups)
        ]
        wanted = {namespace for session in asking for namespace in _namespaces(session)}
        for namespace in self._followed.keys() - wanted:
            self._followed.pop(namespace).close()

    def read(self) -> None:
        """Take in what has changed since the last batch; never waits."""
        for followed in self._followed.values():
            followed.read()

    def look(self) -> None:
        """Follow namespaces that came or went; call it about once a second."""
        for followed in self._followed.values():
            followed.look()

    def refresh(self) -> None:
        """Ask for all connections again, for ends that were not told."""
        for followed in self._followed.values():
            followed.refresh()

    def close(self) -> None:
        """Close the feeds."""
        for followed in self._followed.values():
            followed.close()


def _namespaces(session: SessionPlan) -> set[str | None]:
    return {parse_source(each).namespace for each in session.sources}
