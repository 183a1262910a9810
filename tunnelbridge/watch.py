"""Say when clones begin to be lost and when they go out again: once each, not per packet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from tunnelbridge.ledger import TunnelLedger, told


@dataclass(slots=True)
class _Known:
    lost: int = 0
    sent: int = 0
    is_losing: bool = False
    is_unheard: bool = False


class LossWatch:
    """Compares each tunnel's ledger with what it was at the last look."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[TunnelLedger, _Known]] = {}
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()

    def look(self, ledgers: Iterable[TunnelLedger]) -> None:
        """Log what changed since the last look; call it about once a second."""
        former, self._known = self._known, {}
        for ledger in ledgers:
            _, known = self._known[id(ledger)] = former.get(id(ledger), (ledger, _Known()))
            lost = ledger.errors.total() + ledger.queue_dropped
            if lost > known.lost and not known.is_losing:
                known.is_losing = True
                causes = dict(ledger.errors) | {"queue-full": ledger.queue_dropped}
                self._log.warning("clones are lost", to=ledger.name, so_far=told(causes))
            elif lost == known.lost and known.is_losing and ledger.sent > known.sent:
                known.is_losing = False
                self._log.info("clones go out again", to=ledger.name, lost=lost)
            if ledger.unreachable and not known.is_unheard:
                known.is_unheard = True
                self._log.warning(
                    "the far end answers that nobody listens: is the collector running?",
                    to=ledger.name,
                )
            known.lost, known.sent = lost, ledger.sent
