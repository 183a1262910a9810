"""Losses are told once when they begin and once when they end."""

from __future__ import annotations

from structlog.testing import capture_logs

from tunnelbridge.ledger import TunnelLedger
from tunnelbridge.watch import LossWatch


def test_losing_and_going_on() -> None:
    ledger = TunnelLedger("vxlan://192.0.2.1")
    told: list[list[str]] = []
    with capture_logs() as logs:
        watch = LossWatch()
        for change in (
            {"sent": 5},
            {"errors": 3},
            {"errors": 2, "sent": 1},
            {},  # nothing is offered: nothing is known
            {"sent": 4},
            {"sent": 4, "unreachable": 1},
            {"queue_dropped": 1, "unreachable": 1},
        ):
            ledger.errors["no-route"] += change.pop("errors", 0)
            for name, value in change.items():
                setattr(ledger, name, getattr(ledger, name) + value)
            watch.look([ledger])
            told.append([entry["event"].partition(":")[0] for entry in logs])
            logs.clear()

    assert told == [
        [],
        ["clones are lost"],
        [],
        [],
        ["clones go out again"],
        ["the far end answers that nobody listens"],
        ["clones are lost"],
    ]


def test_a_tunnel_is_compared_with_itself_when_another_is_gone() -> None:
    first, second = TunnelLedger("first"), TunnelLedger("second")
    first.errors["no-route"] = 1
    with capture_logs() as logs:
        watch = LossWatch()
        watch.look([first, second])
        logs.clear()
        first.errors["no-route"], second.errors["no-route"] = 2, 1
        watch.look([second])
        watch.look([second])

    assert [(entry["event"], entry["to"]) for entry in logs] == [("clones are lost", "second")]
