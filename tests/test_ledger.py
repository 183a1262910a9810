"""The sender's counters: what balances, what does not, and how they are written."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tunnelbridge.ledger import (
    MemberLedger,
    SenderLedger,
    SessionLedger,
    SourceLedger,
    TunnelLedger,
    as_json,
    told,
)


def ledger() -> SenderLedger:
    """Return a ledger that balances, with something in every bucket."""
    return SenderLedger(
        received=30,
        kernel_dropped=5,
        not_matched=4,
        refused=Counter({"own-tunnel": 3, "frame-short": 1}),
        cloned=17,
        segments=20,
        mirrored_again=2,
        sessions=[
            SessionLedger(
                "web", 17, 1700, 20, 36, 2, [MemberLedger("192.0.2.7", 20, 2, 4, 14, 900)]
            ),
            SessionLedger("again", 2, 200, 2, 4),
        ],
        sources=[SourceLedger("eth0", 30, 5, 3000)],
        tunnels=[
            TunnelLedger("a", 18, 12, 900, Counter({"no-route": 4}), 2, Counter(mtu=2), 1, 1, 1),
            TunnelLedger("b", 20, 20, 1500),
        ],
    )


def test_a_full_ledger_balances() -> None:
    assert SenderLedger().balances()
    assert ledger().balances()


@pytest.mark.parametrize(
    "bucket",
    ["received", "kernel_dropped", "not_matched", "cloned", "segments", "mirrored_again"],
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


@pytest.mark.parametrize("bucket", ["frames", "copies"])
@pytest.mark.parametrize("which", [0, 1])
def test_one_frame_of_a_session_too_many_does_not_balance(which: int, bucket: str) -> None:
    wrong = ledger()
    setattr(wrong.sessions[which], bucket, getattr(wrong.sessions[which], bucket) + 1)

    assert not wrong.balances()


@pytest.mark.parametrize(
    "bucket",
    [
        "num_total_pkts_cloned",
        "num_mbuf_alloc_failed",
        "num_driver_failures",
        "num_succeeded",
    ],
)
def test_one_clone_of_a_member_too_many_does_not_balance(bucket: str) -> None:
    wrong = ledger()
    (member,) = wrong.sessions[0].members
    setattr(member, bucket, getattr(member, bucket) + 1)

    assert not wrong.balances()


def test_what_is_gone_is_added_up() -> None:
    total = TunnelLedger("closed", 1, 1, 10, Counter({"no-route": 1}))
    total.absorb(ledger().tunnels[0])

    assert total == TunnelLedger(
        "closed", 19, 13, 910, Counter({"no-route": 5}), 2, Counter(mtu=2), 1, 1, 1
    )


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
        "mirrored_again": 2,
        "copies": 40,
        "no_member": 2,
        "sessions": [
            {
                "name": "web",
                "matched": 17,
                "octets": 1700,
                "frames": 20,
                "copies": 36,
                "no_member": 2,
                "members": [
                    {
                        "ip": "192.0.2.7",
                        "num_total_pkts_cloned": 20,
                        "num_mbuf_alloc_failed": 2,
                        "num_driver_failures": 4,
                        "num_succeeded": 14,
                        "octets": 900,
                    }
                ],
            },
            {
                "name": "again",
                "matched": 2,
                "octets": 200,
                "frames": 2,
                "copies": 4,
                "no_member": 0,
                "members": [],
            },
        ],
        "sources": [{"name": "eth0", "received": 30, "kernel_dropped": 5, "octets": 3000}],
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
