"""The counters: every packet ends in exactly one bucket, and the sums balance.

Sender: received = kernel_dropped + not_matched + refused + cloned; per tunnel, segments =
refused + clones and clones = sent + errors + queue_dropped. Truncated and fragmented are told beside:
they are clones, counted before they are sent, whatever becomes of them then. ``received`` counts what
the capture filter let through: what the filter refuses never leaves the kernel and is not counted
anywhere.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
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

    def balances(self) -> bool:
        """Tell whether every clone is accounted for."""
        return self.clones == self.sent + self.errors.total() + self.queue_dropped


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
    tunnels: list[TunnelLedger] = field(default_factory=list)

    def balances(self) -> bool:
        """Tell whether every packet, and every clone of every tunnel, is accounted for."""
        accounted = self.kernel_dropped + self.not_matched + self.refused.total() + self.cloned
        return self.received == accounted and all(
            tunnel.balances() and self.segments == tunnel.clones + tunnel.refused.total()
            for tunnel in self.tunnels
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
            "tunnels": [_tunnel_as_dict(tunnel) for tunnel in self.tunnels],
            "balanced": self.balances(),
        }


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
    }


def told(counts: Mapping[str, int]) -> str:
    """Return counts by cause as prose: ``own-tunnel 3, frame-short 1``."""
    return ", ".join(f"{cause} {count}" for cause, count in counts.items() if count)


def as_json(ledger: Mapping[str, Any]) -> str:
    """Return a ledger as indented JSON with a closing line end."""
    return json.dumps(ledger, indent=2) + "\n"
