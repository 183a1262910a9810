"""The classifier against rules tried one by one, on packets whose fields are known."""

from __future__ import annotations

import random
from collections.abc import Sequence
from ipaddress import ip_network

import numpy as np
import pytest
from filter_oracle import Packet, decided_by, some_packets, some_rule, some_rules
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnelbridge.batch import INBOUND, OUTBOUND, from_packets
from tunnelbridge.clone.classifier import Bits, Classifier
from tunnelbridge.clone.rules import Rule
from tunnelbridge.wire.five_tuple import FiveTuples, read_five_tuples
from tunnelbridge.wire.flow import read_flows

Lists = Sequence[Sequence[Rule] | None]


def tuples_of(packets: Sequence[Packet]) -> FiveTuples:
    batch = from_packets([packet.frame for packet in packets])
    return read_five_tuples(
        batch.memory, read_flows(batch.memory, batch.start, batch.start + batch.length)
    )


def directions(dice: random.Random, count: int) -> np.ndarray:
    return np.array([dice.choice((INBOUND, OUTBOUND)) for _ in range(count)], np.uint8)


def expected_decisions(
    lists: Lists, packets: Sequence[Packet], direction: np.ndarray
) -> list[list[int]]:
    """For each list and packet, the global number of the rule that decides, tried one by one."""
    found, first = [], 0
    for rules in lists:
        row = []
        for packet, way in zip(packets, direction.tolist(), strict=True):
            local = decided_by(rules or [], packet, way == INBOUND)
            row.append(first + local if local >= 0 else -1)
        found.append(row)
        first += 1 if rules is None else len(rules)
    return found


def check(lists: Lists, packets: Sequence[Packet], direction: np.ndarray) -> None:
    classifier = Classifier(lists)
    bits = classifier.candidates(direction, tuples_of(packets))
    decided = expected_decisions(lists, packets, direction)
    flat = [rule for rules in lists for rule in ([None] if rules is None else rules)]
    accepted = [
        [rule if rule >= 0 and flat[rule].accept else -1 for rule in row] for row in decided
    ]
    for number in range(len(lists)):
        assert classifier.decided_by(bits, number).tolist() == decided[number]
        assert classifier.in_list(bits, number).tolist() == accepted[number]
    columns = list(zip(*accepted, strict=True)) if lists else [()] * len(packets)
    expected = [next((rule for rule in column if rule >= 0), -1) for column in columns]
    assert classifier.first_accept(bits).tolist() == expected
    allowed = np.arange(len(lists)) % 2 == 1
    expected = [next((rule for rule in column[1::2] if rule >= 0), -1) for column in columns]
    assert classifier.first_accept(bits, allowed).tolist() == expected


@given(st.integers(0, 2**32), st.lists(st.integers(0, 7), max_size=5), st.integers(0, 24))
@settings(max_examples=150, deadline=None)
def test_as_rules_tried_one_by_one(seed: int, sizes: list[int], count: int) -> None:
    dice = random.Random(seed)
    lists = [some_rules(dice, size) for size in sizes]
    check(lists, some_packets(dice, count), directions(dice, count))


SIZES = ([63], [64], [65], [128], [129], [60, 5, 63, 1], [1, 64, 1], [3, 200, 0, 70, 2])


@pytest.mark.parametrize("sizes", [*SIZES, [0] * 65, [0, 64, 0], [1] * 130], ids=str)
def test_lists_at_the_borders_of_words(sizes: list[int]) -> None:
    dice = random.Random(sum(sizes))
    lists = [some_rules(dice, size) for size in sizes]
    check(lists, some_packets(dice, 200), directions(dice, 200))


def udp(source: int, destination: int, source_port: int = 0, destination_port: int = 0) -> Packet:
    """Return a packet of these fields, from 20 octets of header and 16 behind it."""
    addresses = source.to_bytes(4) + destination.to_bytes(4)
    ports = source_port.to_bytes(2) + destination_port.to_bytes(2)
    frame = bytes(12) + bytes.fromhex("0800 45000024 00000000 40110000") + addresses + ports
    return Packet(frame + bytes(12), 4, 17, source, destination, source_port, destination_port)


def test_long_lists_whose_first_match_is_far_behind() -> None:
    """Rules of which each packet matches few, so that later words decide."""
    dice = random.Random(2)
    ports = list(range(300))
    lists = []
    for _ in range(2):
        dice.shuffle(ports)
        lists.append([Rule(accept=p % 3 > 0, destination_ports=((p, p + 1),)) for p in ports])
    packets = [udp(0x0A000001, 0x0A000002, 1, port) for port in range(310)]
    check(lists, packets, directions(dice, len(packets)))


def test_many_prefixes() -> None:
    """More intervals than a binary search gets: borders of 2^8 and 2^16 on both sides."""
    dice = random.Random(3)
    borders = (0, 0xFFFF, 0x1FFFF, 0x0A0000FF, 0x0A000100, 0x0A00FFFF, 0x0A010000, 2**32 - 1)
    steps = (-257, -256, -1, 0, 1, 255, 256)
    nearby = [(border + step) % 2**32 for border in borders for step in steps]
    lengths = (24, 31, 32, 32, *range(33))
    networks = [
        ip_network((dice.choice(nearby), dice.choice(lengths)), strict=False) for _ in range(50)
    ]
    lists = [
        [Rule(source=net) for net in networks[:25]],
        [Rule(destination=net) for net in networks],
    ]
    packets = [udp(source, other) for source in nearby for other in dice.choices(nearby, k=8)]
    check(lists, packets, directions(dice, len(packets)))
    lists[0] += [some_rule(dice) for _ in range(60)]
    mixed = [*packets, *some_packets(dice, 100)]
    check(lists, mixed, directions(dice, len(mixed)))


@pytest.mark.parametrize("count", [0, 1, 1024, 1025])
def test_batch_sizes(count: int) -> None:
    dice = random.Random(count)
    check(
        [some_rules(dice, 5), [], some_rules(dice, 90)],
        some_packets(dice, count),
        directions(dice, count),
    )
    check([], some_packets(dice, min(count, 3)), directions(dice, min(count, 3)))


def test_batches_that_grow_and_shrink() -> None:
    """What is kept from one batch for the next does not show."""
    dice = random.Random(8)
    classifier = Classifier([some_rules(dice, 70), some_rules(dice, 3)])
    packets = some_packets(dice, 50)
    direction = directions(dice, 50)
    tuples = tuples_of(packets)
    together = classifier.first_accept(classifier.candidates(direction, tuples)).tolist()
    for first, last in ((0, 50), (0, 3), (3, 40), (40, 40), (40, 50)):
        part = classifier.candidates(
            direction[first:last], tuples_of(packets[first:last] or packets[:0])
        )
        assert classifier.first_accept(part).tolist() == together[first:last]


ARP = Packet(bytes(12) + b"\x08\x06" + bytes(28))
UDP = udp(0x0A000001, 0x0A000002, 65535, 0)


def first(rules: Sequence[Rule], packet: Packet) -> int:
    classifier = Classifier([rules])
    bits = classifier.candidates(np.zeros(1, np.uint8), tuples_of([packet]))
    return int(classifier.first_accept(bits)[0])


def test_order_decides() -> None:
    reject, accept = Rule(accept=False, protocol=17), Rule(protocol=17)
    assert first([reject, accept], UDP) == -1
    assert first([accept, reject], UDP) == 0
    assert first([Rule(protocol=6), accept, accept], UDP) == 1


def test_a_rule_without_fields_matches_frames_that_are_not_ip() -> None:
    assert first([Rule()], ARP) == 0
    assert first([Rule(direction="in")], ARP) == 0
    assert first([Rule(direction="out")], ARP) == -1
    for rule in (
        Rule(family=4), Rule(family=6), Rule(protocol=17), Rule(source=ip_network("0.0.0.0/0")),
        Rule(destination=ip_network("::/0")), Rule(source_ports=((0, 65535),)),
    ):  # fmt: skip
        assert first([rule], ARP) == -1, rule


@pytest.mark.parametrize(
    ("rule", "matching"),
    [
        (Rule(source_ports=((65535, 65535),)), True),
        (Rule(source_ports=((0, 65534),)), False),
        (Rule(destination_ports=((0, 0),)), True),
        (Rule(destination_ports=((1, 65535),)), False),
        (Rule(destination_ports=((5, 6), (0, 0), (5, 9))), True),
        (Rule(source=ip_network("10.0.0.1/32")), True),
        (Rule(source=ip_network("10.0.0.0/32")), False),
        (Rule(source=ip_network("10.0.0.2/31")), False),
        (Rule(source=ip_network("0.0.0.0/0"), destination=ip_network("10.0.0.2/32")), True),
        (Rule(source=ip_network("::/0")), False),
    ],
    ids=str,
)
def test_borders(rule: Rule, matching: bool) -> None:
    assert (first([rule], UDP) == 0) is matching


def test_an_expression_among_lists() -> None:
    """Its matches are the caller's; it is one rule, which accepts."""
    lists: Lists = [[Rule(protocol=6)], None, [Rule(accept=False), Rule()], None, [Rule()]]
    classifier = Classifier(lists)
    assert classifier.list_of.tolist() == [0, 1, 2, 2, 3, 4]
    assert classifier.accepts.tolist() == [True, True, False, True, True, True]
    assert classifier.rules[1] == (1, None)
    bits = classifier.candidates(np.zeros(3, np.uint8), tuples_of([ARP, UDP, UDP]))
    assert classifier.first_accept(bits).tolist() == [5, 5, 5]
    classifier.set_opaque(bits, 3, np.array([True, False, False]))
    classifier.set_opaque(bits, 1, np.array([False, True, False]))
    assert classifier.first_accept(bits).tolist() == [4, 1, 5]
    assert classifier.in_list(bits, 1).tolist() == [-1, 1, -1]
    assert classifier.decided_by(bits, 3).tolist() == [4, -1, -1]


@pytest.mark.parametrize("sizes", [[4, 6, 2], [70, 130, 3]], ids=str)
def test_known_flows_keep_their_rule(sizes: list[int]) -> None:
    dice = random.Random(5)
    lists = [some_rules(dice, size) for size in sizes]
    classifier = Classifier(lists)
    packets, direction = some_packets(dice, 60), directions(dice, 60)
    bits: Bits = classifier.candidates(direction, tuples_of(packets))
    before = [classifier.decided_by(bits, number).tolist() for number in range(3)]
    rows = np.array(dice.sample(range(60), 25))
    rule = sizes[0] + np.array([dice.randrange(sizes[1]) for _ in rows])
    classifier.force(bits, 1, rows, rule)
    for row, number in zip(rows.tolist(), rule.tolist(), strict=True):
        before[1][row] = number
    assert [classifier.decided_by(bits, number).tolist() for number in range(3)] == before
    expected = [
        number if number >= 0 and classifier.accepts[number] else -1 for number in before[1]
    ]
    assert classifier.in_list(bits, 1).tolist() == expected
    classifier.force(bits, 1, rows[:0], rule[:0])
    assert classifier.decided_by(bits, 1).tolist() == before[1]
