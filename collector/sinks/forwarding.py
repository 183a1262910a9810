"""What both ways of forwarding share: no way back to ourselves, one set of options, the counters."""

from __future__ import annotations

import contextlib
import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np

from collector.ledger import SinkLedger
from collector.sinks.options import SinkOptions
from tunnelbridge.batch import Column
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.ledger import TunnelLedger
from tunnelbridge.linux.netlink import is_own
from tunnelbridge.linux.pushing import Sent
from tunnelbridge.watch import LossWatch
from tunnelbridge.wire.encapsulation import UDP_PROTOCOL

QUEUE_FULL: Final = "queue-full"


@dataclass(frozen=True, slots=True)
class Heard:
    """What this collector listens on."""

    ports: frozenset[int] = frozenset()
    """UDP ports."""
    protocols: frozenset[int] = frozenset()
    """IP protocols beside UDP."""
    addresses: tuple[str, ...] = ()
    """Own addresses, as IP literals; empty for all of them."""


def refuse_own(name: str, remote: str, protocol: int, ports: frozenset[int], heard: Heard) -> None:
    """Refuse a far end that is ourselves: what goes there would be forwarded again, for ever.

    ``ports`` are the UDP ports that would be sent to. Raises UsageError.
    """
    if protocol == UDP_PROTOCOL:
        met = sorted(ports & heard.ports)
        what = "UDP port " + ", ".join(map(str, met)) if met else ""
    else:
        what = f"IP protocol {protocol}" if protocol in heard.protocols else ""
    if what and _listens_on(remote, heard.addresses) and is_own(remote):
        raise UsageError(
            f"{name} leads back to this collector, which listens on {what} there: forward to"
            " another host, or listen on other ports or addresses (--vxlan, --no-gre, --bind, …)"
        )


def _listens_on(remote: str, addresses: Sequence[str]) -> bool:
    if not addresses:
        return True
    there = ipaddress.ip_address(remote)
    found = [ipaddress.ip_address(address) for address in addresses]
    return any(
        address == there or (address.is_unspecified and address.version == there.version)
        for address in found
    )


def common_options(option: str, each: Sequence[SinkOptions]) -> SinkOptions:
    """Return the filter, snap length and queue of those that share frames; raises UsageError."""
    first = each[0]
    for other in each[1:]:
        if replace(other, target="", more={}) != replace(first, target="", more={}):
            raise UsageError(
                f"{option} {first.target} and {other.target} share the frames:"
                " give both the same filter, snaplen and queue"
            )
    return first


@dataclass(slots=True)
class ForwardLedger(SinkLedger):
    """The counters of a forwarding sink and of each of its far ends."""

    far_ends: list[TunnelLedger] = field(default_factory=list)
    not_offered: Counter[str] = field(default_factory=Counter)
    """Frames that no far end was given, by cause."""

    def settle(self) -> None:
        """Sum up the far ends: what was sent is delivered, the rest is dropped by cause."""
        dropped = Counter(self.not_offered)
        for far_end in self.far_ends:
            dropped.update(_causes(far_end))
        with self.lock:
            self.delivered = sum(far_end.sent for far_end in self.far_ends)
            self.octets = sum(far_end.octets for far_end in self.far_ends)
            self.dropped = dropped

    def as_dict(self) -> dict[str, Any]:
        """Return the sink as ``--stats`` writes it, with its far ends."""
        return SinkLedger.as_dict(self) | {"to": [_as_dict(each) for each in self.far_ends]}


class FarEnd(Protocol):
    """A tunnel, or the sockets to a back end."""

    ledger: TunnelLedger

    def refresh(self) -> None:
        """Follow the network's changes; raises UserError and OSError where there is no way now."""

    def close(self) -> None:
        """Close what is open."""


F = TypeVar("F", bound=FarEnd)


class FarEnds(Generic[F]):
    """What both forwarding sinks do with the ends they send to, whatever these are.

    Subclasses call :meth:`_open` once they know all, and deliver in ``put``.
    """

    ledger: SinkLedger

    def _open(self, name: str, openers: Iterable[Callable[[], F]]) -> None:
        """Open all far ends, or none; raises what an opener raises."""
        self._far_ends: list[F] = []
        self._watch = LossWatch()
        with contextlib.ExitStack() as opening:
            for opener in openers:
                far_end = opener()
                opening.callback(far_end.close)
                self._far_ends.append(far_end)
            opening.pop_all()
        self._counts = ForwardLedger(name, far_ends=[each.ledger for each in self._far_ends])
        self.ledger = self._counts

    def _chosen(self, choice: Column) -> Iterator[tuple[F, Column]]:
        """Yield each far end that gets something, with the rows it gets."""
        for number, far_end in enumerate(self._far_ends):
            rows = np.flatnonzero(choice == number)
            if rows.size:
                yield far_end, rows

    def tick(self, now: int) -> None:
        """Follow the network's changes, and tell of losses."""
        for far_end in self._far_ends:
            with contextlib.suppress(UserError, OSError):  # no route now: sending counts it
                far_end.refresh()
        self._watch.look(self._counts.far_ends)

    def is_gone(self) -> bool:
        """Never: a far end may come back."""
        return False

    def close(self) -> None:
        """Close all far ends."""
        for far_end in self._far_ends:
            far_end.close()


def count_sent(ledger: TunnelLedger, offered: int, sent: Sent) -> None:
    """Account for what a socket made of ``offered`` packets."""
    ledger.clones += offered
    ledger.sent += sent.packets
    ledger.octets += sent.octets
    ledger.unreachable += sent.unreachable
    ledger.queue_dropped += sent.errors.pop(QUEUE_FULL, 0)
    ledger.errors.update(sent.errors)


def _causes(far_end: TunnelLedger) -> Counter[str]:
    causes = far_end.errors + far_end.refused
    if far_end.queue_dropped:
        causes[QUEUE_FULL] += far_end.queue_dropped
    return causes


def _as_dict(far_end: TunnelLedger) -> dict[str, Any]:
    return {
        "name": far_end.name,
        "delivered": far_end.sent,
        "octets": far_end.octets,
        "dropped": dict(_causes(far_end)),
        "truncated": far_end.truncated,
        "fragmented": far_end.fragmented,
        "unreachable": far_end.unreachable,
    }
