"""Which interfaces are mirrored now: those the sessions name, as they come and go.

An interface that is named must be there at the start; afterwards it may vanish and come back. A glob
(``veth*``) means whatever matches at the moment. Every namespace has a monitor of its own; events can
be lost, so :meth:`Interfaces.look` compares once in a while what is there with what is attached.

A namespace lives as long as a socket in it does: once its name is gone everything of it is closed here,
or a container's cable would never vanish.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Final

import structlog

from tunnelbridge.errors import UserError
from tunnelbridge.ledger import SourceLedger
from tunnelbridge.linux.links import LinkEvent, LinkMonitor
from tunnelbridge.linux.namespace import identity, in_thread
from tunnelbridge.linux.tpacket import interface_names
from tunnelbridge.pipeline import Pipeline
from tunnelbridge.policy.plan import SessionPlan
from tunnelbridge.policy.sources import SourcePattern, parse_source
from tunnelbridge.source import LONGEST_READ, MOST_BLOCKS, InterfaceSource, mirrorable

FULL_SIZED: Final = 4
"""Rings of one size; the next so many have half of it, down to FEWEST_BLOCKS."""
BREATH: Final = 0.001
"""Seconds until more of them are attached."""
FEWEST_BLOCKS: Final = 16
"""Of a ring: 4 MiB."""


@dataclass(slots=True)
class _Namespace:
    """A network namespace in which sources are."""

    name: str | None
    identity: tuple[int, int] | None
    monitor: LinkMonitor | None = None
    unfit: set[str] = field(default_factory=set)
    """Interfaces that match a glob and cannot be mirrored; told once."""


class Interfaces:
    """Attaches and detaches sources; tells ``on_attach`` and ``on_detach`` of each."""

    def __init__(
        self,
        pipeline: Pipeline,
        on_attach: Callable[[InterfaceSource], None],
        on_detach: Callable[[InterfaceSource], None],
    ) -> None:
        self.sources: list[InterfaceSource] = []
        self._pipeline = pipeline
        self._on_attach, self._on_detach = on_attach, on_detach
        self._patterns: list[SourcePattern] = []
        self._namespaces: dict[str | None, _Namespace] = {}
        self._vanished: SourceLedger | None = None
        self._is_catching_up = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Attach what is there and follow what comes; raises UserError for what cannot be."""
        self._loop = loop
        self.follow_policy(strict=True)

    def follow_policy(self, strict: bool = False) -> None:
        """Attach, detach and refilter as the policy says now; before the start nothing."""
        if self._loop is None:
            return
        plans = [each.plan for each in self._pipeline.policy.sessions]  # disabled ones wait
        self._patterns = list(dict.fromkeys(patterns(plans)))
        wanted = {pattern.namespace for pattern in self._patterns}
        for name in self._namespaces.keys() - wanted:
            self._leave(self._namespaces.pop(name))
        for name in wanted - self._namespaces.keys():
            self._namespaces[name] = self._enter(name)
        for source in list(self.sources):
            if not self._is_wanted(source.namespace, source.name):
                self._remove(source)
            else:
                self._refilter(source)
        self._attach_named(strict)
        self._attach_matching(*wanted, at_once=strict)
        self._list_in_ledger()

    def check(self, plans: Sequence[SessionPlan]) -> None:
        """Refuse sessions that cannot be followed; raises UserError and UsageError.

        Compiles their expressions too: call it in a thread. An interface that is followed already may
        be away.
        """
        check_named(plans, known=self._patterns)
        self._pipeline.policy.programs.renew(plans)

    def look(self) -> None:
        """Compare what is there with what is attached."""
        for namespace in self._namespaces.values():
            if namespace.name is not None and identity(namespace.name) != namespace.identity:
                self._follow_namespace(namespace)
        for source in list(self.sources):  # who has another name now is let go of first
            source.count_drops()
            self._follow_link(source)
        self._attach_matching(*self._namespaces)
        self._list_in_ledger()

    def close(self) -> None:
        """End all monitors and detach all sources; they stay listed, and nothing is followed."""
        self._loop = None
        for namespace in self._namespaces.values():
            if namespace.monitor is not None:
                namespace.monitor.close()
        for source in self.sources:
            self._detach(source)

    # --- namespaces ---

    def _enter(self, name: str | None) -> _Namespace:
        namespace = _Namespace(name, None if name is None else identity(name))
        monitor = LinkMonitor(lambda event: self._post(name, event))
        try:
            monitor.start() if name is None else in_thread(monitor.start, name)
        except UserError:  # it may come
            return namespace
        namespace.monitor = monitor
        return namespace

    def _leave(self, namespace: _Namespace) -> None:
        if namespace.monitor is not None:
            namespace.monitor.close()
        for source in list(self.sources):
            if source.namespace == namespace.name:
                self._remove(source)

    def _follow_namespace(self, namespace: _Namespace) -> None:
        """Let go of a namespace that vanished, and take the one that has its name now."""
        if namespace.monitor is not None:
            namespace.monitor.close()
            self._log.warning("namespace is gone", namespace=namespace.name)
        for source in list(self.sources):
            if source.namespace == namespace.name:
                self._detach(source)
        fresh = self._enter(namespace.name)
        namespace.identity, namespace.monitor = fresh.identity, fresh.monitor

    def _post(self, namespace: str | None, event: LinkEvent) -> None:
        """Bring an event from the monitor's thread to the loop, which may have closed meanwhile."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_link, namespace, event.name)

    # --- interfaces ---

    def _is_wanted(self, namespace: str | None, name: str) -> bool:
        return any(pattern.matches(namespace, name) for pattern in self._patterns)

    def _on_link(self, namespace: str | None, name: str) -> None:
        if self._loop is None:
            return
        known = [each for each in self.sources if (each.namespace, each.name) == (namespace, name)]
        for source in known:
            self._follow_link(source)
        if not known and namespace in self._namespaces and self._is_wanted(namespace, name):
            self._attach_matching(namespace)
        self._list_in_ledger()

    def _follow_link(self, source: InterfaceSource) -> None:
        """Follow an interface that vanishes, and one that comes back under the same name."""
        if not source.is_stale():
            return
        if source.ring is not None:
            self._log.warning("interface is gone, waiting for it", interface=source.ledger.name)
            source.read()
            self._detach(source)
        if source.find() is None and self._is_by_glob(source):
            self._remove(source)
        elif source.is_stale() and source.reattach(self._room()):
            self._log.info("interface is back", interface=source.ledger.name)
            self._on_attach(source)

    def _is_by_glob(self, source: InterfaceSource) -> bool:
        return SourcePattern(source.namespace, source.name) not in self._patterns

    def _attach_named(self, strict: bool) -> None:
        known = {(source.namespace, source.name) for source in self.sources}
        for pattern in self._patterns:
            if not pattern.is_glob and pattern not in known:
                source = InterfaceSource(pattern.name, pattern.namespace, self._pipeline)
                try:
                    source.attach(self._room())
                except UserError:
                    if strict:
                        raise
                else:
                    self._on_attach(source)
                self.sources.append(source)

    def _attach_matching(self, *namespaces: str | None, at_once: bool = False) -> None:
        """Attach the interfaces that match a glob and are not attached yet.

        Unless ``at_once`` some of them at a time: the kernel takes 30 ms for a ring, and the packets
        of the others wait.
        """
        if self._is_catching_up:
            return
        deadline = math.inf if at_once else monotonic() + LONGEST_READ
        for namespace in namespaces:
            for name in self._unattached(namespace):
                is_new = self._attach(name, namespace)
                if is_new and monotonic() > deadline and self._loop is not None:
                    self._is_catching_up = True
                    self._loop.call_later(BREATH, self._catch_up)
                    return

    def _catch_up(self) -> None:
        self._is_catching_up = False
        if self._loop is not None:
            self._attach_matching(*self._namespaces)
            self._list_in_ledger()

    def _unattached(self, namespace: str | None) -> list[str]:
        """Return the interfaces of a namespace that match a glob and have no source."""
        globs = [each for each in self._patterns if each.is_glob and each.namespace == namespace]
        known = {source.name for source in self.sources if source.namespace == namespace}
        names = _names(namespace) if globs else []
        return [
            name
            for name in names
            if name not in known and any(each.matches(namespace, name) for each in globs)
        ]

    def _attach(self, name: str, namespace: str | None) -> bool:
        """Attach an interface; False, and told once, where it cannot be mirrored."""
        unfit = self._namespaces[namespace].unfit
        source = InterfaceSource(name, namespace, self._pipeline)
        try:
            source.attach(self._room())
        except UserError as error:
            if name not in unfit:
                self._log.warning(f"not mirrored: {error}", interface=source.ledger.name)
            unfit.add(name)
            return False
        unfit.discard(name)
        self.sources.append(source)
        self._log.info("interface is mirrored", interface=source.ledger.name)
        self._on_attach(source)
        return True

    def _room(self) -> int:
        """Return the blocks of the next ring: hundreds of containers have less each."""
        attached = sum(source.ring is not None for source in self.sources)
        return max(MOST_BLOCKS >> attached // FULL_SIZED, FEWEST_BLOCKS)

    def _refilter(self, source: InterfaceSource) -> None:
        """Let a source follow the policy; one that has just gone is detached, and looked for."""
        try:
            source.follow_policy()
        except UserError as error:
            self._log.warning(str(error), interface=source.ledger.name)
            self._detach(source)

    def _detach(self, source: InterfaceSource) -> None:
        if source.ring is not None:
            self._on_detach(source)
            source.detach()

    def _remove(self, source: InterfaceSource) -> None:
        """Forget a source; what it counted goes into one entry for all that have vanished."""
        self._detach(source)
        self.sources.remove(source)
        self._vanished = self._vanished or SourceLedger("vanished interfaces")
        self._vanished.absorb(source.ledger)

    def _list_in_ledger(self) -> None:
        listed = [source.ledger for source in self.sources]
        self._pipeline.ledger.sources = listed + ([self._vanished] if self._vanished else [])


def patterns(plans: Iterable[SessionPlan]) -> list[SourcePattern]:
    """Return what the sessions' sources mean, in order."""
    return [parse_source(each) for plan in plans for each in plan.sources]


def check_named(plans: Iterable[SessionPlan], known: Iterable[SourcePattern] = ()) -> None:
    """Refuse interfaces that are named, not globbed, and are not there; raises UserError.

    Those that are ``known`` may be away.
    """
    for pattern in dict.fromkeys(patterns(plans)):
        if pattern.is_glob or pattern in known:
            continue
        in_thread(partial(mirrorable, pattern.name), pattern.namespace)


def _names(namespace: str | None) -> list[str]:
    try:
        return interface_names() if namespace is None else in_thread(interface_names, namespace)
    except UserError:  # the namespace is gone
        return []
