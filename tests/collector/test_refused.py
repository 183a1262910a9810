"""Refused senders: exact counts in bounded memory, against a scalar table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector import refused
from collector.refused import RefusedSenders
from tunnelbridge.wire.layer import Kind
from tunnelbridge.wire.reasons import Reason

refusals = st.tuples(
    st.integers(1, 6),
    st.sampled_from([Kind.NONE, Kind.VXLAN, Kind.GRE]),
    st.sampled_from([Reason.NOT_ALLOWED, Reason.VXLAN_SHORT]),
)


def take(table: RefusedSenders, batch: list[tuple[int, Kind, Reason]], now: int) -> None:
    source = np.zeros((len(batch), 16), np.uint8)
    source[:, 10:12] = 0xFF
    source[:, 15] = [host for host, _, _ in batch]
    table.take(
        source,
        np.array([kind for _, kind, _ in batch], np.uint8),
        np.array([reason for _, _, reason in batch], np.uint8),
        np.arange(len(batch)) + now,
    )


def told(table: RefusedSenders) -> list[tuple[object, ...]]:
    return [
        (
            each.source,
            each.encapsulation,
            each.reason,
            each.packets,
            each.first_seen,
            each.last_seen,
        )
        for each in table.ledgers()
    ]


def name(host: int, kind: Kind, reason: Reason) -> tuple[object, ...]:
    slug = {Reason.NOT_ALLOWED: "not-allowed", Reason.VXLAN_SHORT: "vxlan-short"}[reason]
    return f"0.0.0.{host}", kind.slug if kind else None, slug


@given(st.lists(st.lists(refusals, max_size=8), max_size=6))
def test_every_refusal_is_in_one_row(batches: list) -> None:
    table, expected = RefusedSenders(), {}
    for number, batch in enumerate(batches):
        take(table, batch, 1000 * number)
        for place, refusal in enumerate(batch):
            now = 1000 * number + place
            packets, first, _ = expected.get(name(*refusal), (0, now, now))
            expected[name(*refusal)] = packets + 1, first, now

    assert {row[:3]: row[3:] for row in told(table)} == expected
    assert len(told(table)) == len(expected)
    assert table.forgotten == 0


@given(st.lists(refusals, max_size=60))
def test_the_oldest_are_forgotten_and_the_sum_stays(batch: list) -> None:
    table = RefusedSenders()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refused, "MOST", 3)
        for now, refusal in enumerate(batch):
            take(table, [refusal], now)

    latest = list(dict.fromkeys(name(*each) for each in reversed(batch)))[:3]
    assert [row[:3] for row in told(table)] == latest[::-1]
    assert sum(row[3] for row in told(table)) + table.forgotten == len(batch)


def test_a_flood_of_forged_sources_stays_bounded() -> None:
    table = RefusedSenders()
    rng = np.random.default_rng(1)
    batches = 2 * refused.MOST // refused.AT_ONCE
    for now in range(batches):
        source = rng.integers(0, 256, (1024, 16), dtype=np.uint8)
        reason = np.full(1024, Reason.NOT_ALLOWED, np.uint8)
        table.take(source, np.zeros(1024, np.uint8), reason, np.full(1024, now))
        assert len(table.ledgers()) == min(refused.MOST, (now + 1) * refused.AT_ONCE)
    total = sum(each.packets for each in table.ledgers()) + table.forgotten
    assert total == batches * 1024


@pytest.mark.parametrize("senders", [1, refused.AT_ONCE, refused.AT_ONCE + 1])
def test_the_first_senders_of_a_batch_are_looked_at(senders: int) -> None:
    table = RefusedSenders()
    batch = [(1 + number % senders, Kind.GRE, Reason.NOT_ALLOWED) for number in range(200)]
    take(table, batch, 5)
    listed = min(senders, refused.AT_ONCE)
    assert [row[0] for row in told(table)] == [f"0.0.0.{1 + number}" for number in range(listed)]
    assert sum(row[3] for row in told(table)) + table.forgotten == 200
    assert (table.forgotten > 0) == (senders > refused.AT_ONCE)
