"""The collector's counters: what balances, what does not, and how they are written."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from collector.ledger import CollectorLedger, RefusedSender, SinkLedger, StreamLedger


def ledger() -> CollectorLedger:
    """Return a ledger that balances, with something in every bucket."""
    return CollectorLedger(
        received=10,
        socket_dropped=99,
        reassembly_failed=98,
        rejected=Counter({"not-allowed": 2, "vxlan-short": 1}),
        decapsulated=7,
        sinks=[
            SinkLedger("pcap x", 4, 300, Counter({"queue-full": 1}), queued=1, filtered=1),
            SinkLedger("tap y", 7, 420),
        ],
    )


def test_balance() -> None:
    assert CollectorLedger().balances()
    assert ledger().balances()


@pytest.mark.parametrize("bucket", ["received", "decapsulated"])
def test_one_too_many_does_not_balance(bucket: str) -> None:
    wrong = ledger()
    setattr(wrong, bucket, getattr(wrong, bucket) + 1)
    assert not wrong.balances()


@pytest.mark.parametrize("which", [0, 1])
def test_a_frame_that_a_sink_does_not_account_for(which: int) -> None:
    wrong = ledger()
    wrong.sinks[which].delivered += 1
    assert not wrong.balances()

    wrong = ledger()
    wrong.sinks[which].dropped["queue-full"] += 1
    assert not wrong.balances()

    wrong = ledger()
    wrong.sinks[which].filtered += 1
    assert not wrong.balances()


def test_a_rejected_one_too_many() -> None:
    wrong = ledger()
    wrong.rejected["vxlan-short"] += 1
    assert wrong.as_dict("x", [])["balanced"] is False


def test_json_holds_every_counter() -> None:
    stream = StreamLedger("192.0.2.1", "vxlan", None, 7, 720, 1, 2, 3, 4, 5, 6, 8, 9, 10)

    refused = RefusedSender("192.0.2.9", "vxlan", "not-allowed", 2, 3, 4)
    assert json.loads(json.dumps(ledger().as_dict("collector listen", [stream], [refused]))) == {
        "program": "collector listen",
        "received": 10,
        "socket_dropped": 99,
        "reassembly_failed": 98,
        "rejected": {"not-allowed": 2, "vxlan-short": 1},
        "decapsulated": 7,
        "deduplicated": 0,
        "waiting": 0,
        "late": 0,
        "hurried": 0,
        "streams": [
            {
                "source": "192.0.2.1",
                "encapsulation": "vxlan",
                "identifier": None,
                "packets": 7,
                "octets": 720,
                "truncated": 1,
                "lost": 2,
                "reordered": 3,
                "duplicate": 4,
                "restarts": 5,
                "first_seen": 6,
                "last_seen": 8,
                "sequence_first": 9,
                "sequence_next": 10,
            }
        ],
        "sinks": [
            {
                "name": "pcap x",
                "delivered": 4,
                "octets": 300,
                "queued": 1,
                "filtered": 1,
                "dropped": {"queue-full": 1},
            },
            {
                "name": "tap y",
                "delivered": 7,
                "octets": 420,
                "queued": 0,
                "filtered": 0,
                "dropped": {},
            },
        ],
        "refused": [
            {
                "source": "192.0.2.9",
                "encapsulation": "vxlan",
                "reason": "not-allowed",
                "packets": 2,
                "first_seen": 3,
                "last_seen": 4,
            }
        ],
        "balanced": True,
    }


@pytest.mark.parametrize(
    ("encapsulation", "identifier", "key"),
    [
        ("vxlan", 7, "vxlan 192.0.2.1 vni 7"),
        ("geneve", 0, "geneve 192.0.2.1 vni 0"),
        ("gre", 5, "gre 192.0.2.1 key 5"),
        ("gre-ip", None, "gre-ip 192.0.2.1"),
        ("erspan3", 9, "erspan3 192.0.2.1 session 9"),
        ("tzsp", 3, "tzsp 192.0.2.1 id 3"),
    ],
)
def test_a_stream_s_name(encapsulation: str, identifier: int | None, key: str) -> None:
    assert StreamLedger("192.0.2.1", encapsulation, identifier).key() == key
