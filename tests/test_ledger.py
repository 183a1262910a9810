"""The sender's counters: what balances, what does not, and how they are written."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tunnelbridge.ledger import SenderLedger, TunnelLedger, as_json, told


def ledger() -> SenderLedger:
    """Return a ledger that balances, with something in every bucket."""
    return SenderLedger(
        received=30,
        kernel_dropped=5,
        not_matched=4,
        refused=Counter({"own-tunnel": 3, "frame-short": 1}),
        cloned=17,
        segments=20,
        tunnels=[
            TunnelLedger("a", 18, 12, 900, Counter({"no-route": 4}), 2, Counter(mtu=2), 1, 1, 1),
            TunnelLedger("b", 20, 20, 1500),
        ],
    )


def test_a_full_ledger_balances() -> None:
    assert SenderLedger().balances()
    assert ledger().balances()


@pytest.mark.parametrize(
    "bucket", ["received", "kernel_dropped", "not_matched", "cloned", "segments"]
)
def test_one_packet_too_many_does_not_balance(bucket: str) -> None:
    wrong = ledger()
    setattr(wrong, bucket, getattr(wrong, bucket) + 1)

    assert not wrong.balances()
    assert wrong.as_dict()["balanced"] is False


@pytest.mark.parametrize("bucket", ["clones", "sent", "queue_dropped"])
@pytest.mark.parametrize("which", [0, 1])
def test_one_clone_too_many_does_not_balance(which: int, bucket: str) -> None:
    wrong = ledger()
    setattr(wrong.tunnels[which], bucket, getattr(wrong.tunnels[which], bucket) + 1)

    assert not wrong.balances()


@pytest.mark.parametrize("causes", ["errors", "refused"])
def test_one_cause_too_many_does_not_balance(causes: str) -> None:
    wrong = ledger()
    getattr(wrong.tunnels[1], causes)["no-route"] += 1
    assert not wrong.balances()

    wrong = ledger()
    wrong.refused["frame-short"] += 1
    assert not wrong.balances()


def test_what_is_told_beside_does_not_count() -> None:
    beside = ledger()
    beside.unsegmented += 1
    for name in ("truncated", "fragmented", "unreachable", "octets"):
        setattr(beside.tunnels[0], name, 99)

    assert beside.balances()


def test_json_holds_every_counter() -> None:
    text = as_json(ledger().as_dict())

    assert text.endswith("}\n")
    assert json.loads(text) == {
        "program": "tunnelbridge send",
        "received": 30,
        "kernel_dropped": 5,
        "not_matched": 4,
        "refused": {"own-tunnel": 3, "frame-short": 1},
        "cloned": 17,
        "segments": 20,
        "unsegmented": 0,
        "tunnels": [
            {
                "name": "a",
                "clones": 18,
                "sent": 12,
                "octets": 900,
                "errors": {"no-route": 4},
                "queue_dropped": 2,
                "refused": {"mtu": 2},
                "truncated": 1,
                "fragmented": 1,
                "unreachable": 1,
            },
            {
                "name": "b",
                "clones": 20,
                "sent": 20,
                "octets": 1500,
                "errors": {},
                "queue_dropped": 0,
                "refused": {},
                "truncated": 0,
                "fragmented": 0,
                "unreachable": 0,
            },
        ],
        "balanced": True,
    }


def test_counts_in_words() -> None:
    assert told({"own-tunnel": 3, "mtu": 0, "frame-short": 1}) == "own-tunnel 3, frame-short 1"
    assert told({}) == ""
