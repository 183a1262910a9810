"""The counters: every packet ends in exactly one bucket, and the sums balance.

Sender: received = kernel_dropped + not_matched + refused + cloned. The originals that were cloned are
``segments`` frames on the wire; policy makes of them ``copies`` for members (several with several
sessions, or to all members of a pool) and ``no_member`` where none was up. Over all tunnels, copies =
refused + clones, and of each, clones = sent + errors + queue_dropped. Truncated and fragmented are
told beside: they are clones, counted before they are sent, whatever becomes of them then.
``received`` counts what the capture filter let through: what the filter refuses never leaves the
kernel and is not counted anywhere.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class TunnelLedger:
    """What became of the clones for one tunnel."""

    name: str
    clones: int = 0
    sent: int = 0
    octets: int = 0
    """Inner octets sent, without any tunnel header."""
    errors: Counter[str] = field(default_factory=Counter)
    queue_dropped: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    fragmented: int = 0
    unreachable: int = 0
    """ICMP errors that came back; told beside, nothing was lost by them here."""
    outer: dict[str, Any] = field(default_factory=dict)
    """What a collector knows the tunnel by: encapsulation, identifier, remote, local, and the next
    sequence number; empty where nobody told."""

    def absorb(self, other: TunnelLedger) -> None:
        """Add the counts of a tunnel that is closed."""
        _add(self, other)

    def balances(self) -> bool:
        """Tell whether every clone is accounted for."""
        return self.clones == self.sent + self.errors.total() + self.queue_dropped


@dataclass(slots=True)
class MemberLedger:
    """What became of a session's clones for one pool member, in NSX's names (``show stats``)."""

    ip: str
    num_total_pkts_cloned: int = 0
    num_mbuf_alloc_failed: int = 0
    """Clones for which there was no room in the send queue."""
    num_driver_failures: int = 0
    """Clones that could not be sent: errors of the network, or refused by the MTU policy."""
    num_succeeded: int = 0
    octets: int = 0

    def balances(self) -> bool:
        """Tell whether every clone succeeded or failed."""
        failed = self.num_mbuf_alloc_failed + self.num_driver_failures
        return self.num_total_pkts_cloned == self.num_succeeded + failed


@dataclass(slots=True)
class SessionLedger:
    """What one mirror session took, and what became of it."""

    name: str
    matched: int = 0
    """Originals that the session mirrors."""
    octets: int = 0
    """Octets of these originals."""
    frames: int = 0
    """Frames these originals were on the wire."""
    copies: int = 0
    """Frames given to tunnels: several times where all members get them."""
    no_member: int = 0
    """Frames for which no member was up, or none has a weight."""
    members: list[MemberLedger] = field(default_factory=list)

    def absorb(self, other: SessionLedger) -> None:
        """Add the counts of a session that was removed."""
        _add(self, other)

    def as_dict(self) -> dict[str, Any]:
        """Return the counters as ``--stats`` writes them."""
        return asdict(self)


@dataclass(slots=True)
class SourceLedger:
    """What one interface gave."""

    name: str
    received: int = 0
    kernel_dropped: int = 0
    octets: int = 0

    def absorb(self, other: SourceLedger) -> None:
        """Add the counts of an interface that is gone."""
        _add(self, other)


@dataclass(slots=True)
class SenderLedger:
    """What became of the packets of all sources."""

    received: int = 0
    kernel_dropped: int = 0
    not_matched: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    cloned: int = 0
    """Originals of which clones were made."""
    segments: int = 0
    """Frames those originals were on the wire, after super-packets were cut."""
    unsegmented: int = 0
    """Super-packets that could not be cut and were cloned as they are."""
    mirrored_again: int = 0
    """Frames that a further session mirrored as well (``mirror_once = false``)."""
    sessions: list[SessionLedger] = field(default_factory=list)
    tunnels: list[TunnelLedger] = field(default_factory=list)
    sources: list[SourceLedger] = field(default_factory=list)

    @property
    def copies(self) -> int:
        """Frames that policy gave to tunnels."""
        return sum(session.copies for session in self.sessions)

    def balances(self) -> bool:
        """Tell whether every packet, and every clone of every tunnel, is accounted for."""
        accounted = self.kernel_dropped + self.not_matched + self.refused.total() + self.cloned
        offered = sum(tunnel.clones + tunnel.refused.total() for tunnel in self.tunnels)
        return (
            self.received == accounted
            and self.segments + self.mirrored_again == sum(each.frames for each in self.sessions)
            and self.copies == offered
            and all(tunnel.balances() for tunnel in self.tunnels)
            and all(member.balances() for session in self.sessions for member in session.members)
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the ledger as ``--stats`` writes it."""
        return {
            "program": "tunnelbridge send",
            "received": self.received,
            "kernel_dropped": self.kernel_dropped,
            "not_matched": self.not_matched,
            "refused": dict(self.refused),
            "cloned": self.cloned,
            "segments": self.segments,
            "unsegmented": self.unsegmented,
            "mirrored_again": self.mirrored_again,
            "copies": self.copies,
            "no_member": sum(session.no_member for session in self.sessions),
            "sessions": [session.as_dict() for session in self.sessions],
            "sources": [asdict(source) for source in self.sources],
            "tunnels": [_tunnel_as_dict(tunnel) for tunnel in self.tunnels],
            "balanced": self.balances(),
        }


def _add(total: Any, other: Any) -> None:
    """Add the counters of one ledger to another of its kind; names and lists stay."""
    for each in fields(total):
        value = getattr(other, each.name)
        if isinstance(value, Counter):
            getattr(total, each.name).update(value)
        elif isinstance(value, int):
            setattr(total, each.name, getattr(total, each.name) + value)


def _tunnel_as_dict(tunnel: TunnelLedger) -> dict[str, Any]:
    return {
        "name": tunnel.name,
        "clones": tunnel.clones,
        "sent": tunnel.sent,
        "octets": tunnel.octets,
        "errors": dict(tunnel.errors),
        "queue_dropped": tunnel.queue_dropped,
        "refused": dict(tunnel.refused),
        "truncated": tunnel.truncated,
        "fragmented": tunnel.fragmented,
        "unreachable": tunnel.unreachable,
        **({"outer": dict(tunnel.outer)} if tunnel.outer else {}),
    }


def told(counts: Mapping[str, int]) -> str:
    """Return counts by cause as prose: ``own-tunnel 3, frame-short 1``."""
    return ", ".join(f"{cause} {count}" for cause, count in counts.items() if count)


def as_json(ledger: Mapping[str, Any]) -> str:
    """Return a ledger as indented JSON with a closing line end."""
    return json.dumps(ledger, indent=2) + "\n"
