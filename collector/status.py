"""What ``collector show`` tells of a running collector, as values for JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from collector.findings import findings, remarks
from collector.health import MirrorHealth
from collector.ledger import CollectorLedger, RefusedSender, StreamLedger
from tunnelbridge.errors import UserError

MOST_SHOWN: Final = 1000
"""Streams in one answer, those with most packets."""
_SHORTEST: Final = 500_000_000
"""Nanoseconds between two looks that a rate is made of."""


class Status:
    """Answers ``show WHAT``, and keeps what streams counted at the last look for their rates.

    ``streams`` and ``refused`` return the ledgers of now; ``stats`` the whole as ``--stats`` has it.
    """

    def __init__(
        self,
        ledger: CollectorLedger,
        streams: Callable[[], Sequence[StreamLedger]],
        refused: Callable[[], Sequence[RefusedSender]],
        stats: Callable[[], dict[str, Any]],
        health: MirrorHealth | None,
    ) -> None:
        self._ledger, self._stats, self._health = ledger, stats, health
        self._streams, self._refused = streams, refused
        self._looked = 0
        self._counts: list[tuple[int, int]] = []
        self._rates: list[tuple[float, float]] = []
        self._answers: dict[str, Callable[[], Any]] = {
            "streams": self.streams,
            "sinks": self.sinks,
            "refused": self.refused,
            "health": self.health,
            "totals": self.totals,
            "stats": lambda: {"ledger": self._stats()},
        }

    def show(self, what: str) -> Any:
        """Return what is asked for; raises UserError for what there is not."""
        if what not in self._answers:
            raise UserError(f"cannot show {what}: expected one of {', '.join(self._answers)}")
        return self._answers[what]()

    def tick(self, now: int) -> None:
        """Look at the streams' counters; ``now`` in nanoseconds, about once a second."""
        seconds = (now - self._looked) / 1e9
        if 0 <= now - self._looked < _SHORTEST:
            return
        counts = [(stream.packets, stream.octets) for stream in self._streams()]
        known = self._counts + [(0, 0)] * (len(counts) - len(self._counts))
        if self._looked and seconds > 0:
            self._rates = [
                ((packets - before[0]) / seconds, (octets - before[1]) * 8 / seconds)
                for (packets, octets), before in zip(counts, known, strict=True)
            ]
        self._looked, self._counts = now, counts

    def streams(self) -> dict[str, Any]:
        """Return the streams with most packets, in their order, and how many more there are."""
        ledgers = self._streams()
        chosen = range(len(ledgers))
        if len(ledgers) > MOST_SHOWN:
            busiest = sorted(chosen, key=lambda number: ledgers[number].packets)[-MOST_SHOWN:]
            return {"streams": [self._stream(n, ledgers[n]) for n in sorted(busiest)],
                    "more": len(ledgers) - MOST_SHOWN}  # fmt: skip
        return {"streams": [self._stream(n, ledgers[n]) for n in chosen], "more": 0}

    def _stream(self, number: int, ledger: StreamLedger) -> dict[str, Any]:
        packets, bits = self._rates[number] if number < len(self._rates) else (0.0, 0.0)
        rates = {"packets_per_second": round(packets, 1), "bits_per_second": round(bits)}
        return {"number": number, "name": ledger.key(), **ledger.as_dict(), **rates}

    def totals(self) -> dict[str, Any]:
        """Return the counters of the whole, without streams, sinks and senders."""
        ledger = self._ledger.as_dict("collector listen", ())
        return {name: value for name, value in ledger.items() if not isinstance(value, list)}

    def sinks(self) -> list[dict[str, Any]]:
        """Return every sink and what became of its frames."""
        return [sink.as_dict() for sink in self._ledger.sinks]

    def refused(self) -> list[dict[str, Any]]:
        """Return who sent what was refused, and why."""
        return [sender.as_dict() for sender in self._refused()]

    def health(self) -> dict[str, Any]:
        """Return the health report with what it means; raises UserError: nobody looks."""
        if self._health is None:
            raise UserError(
                "mirror health is switched off: start the collector without --no-health"
            )
        lost = sum(stream.lost for stream in self._streams())
        report = self._health.as_dict()
        told = {"findings": findings(report, lost), "remarks": remarks(report)}
        return {**report, "lost": lost, **told}

    def remarks(self) -> list[str]:
        """Return what may be wrong with the mirror, or right."""
        return [] if self._health is None else remarks(self._health.as_dict())

    def findings(self) -> list[str]:
        """Return what is wrong with the mirror, as far as anybody looks."""
        if self._health is None:
            return []
        lost = sum(stream.lost for stream in self._streams())
        return findings(self._health.as_dict(), lost)
