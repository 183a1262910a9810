"""Rule lists as tcpdump expressions: libpcap accepts what the rules accept, tried one by one."""

from __future__ import annotations

import random
from ipaddress import ip_network
from typing import Literal

import pytest
from filter_oracle import REJECTING, Packet, accepts, some_packets, some_rules
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bpf import compiled, judged

from tunnelbridge.batch import from_packets
from tunnelbridge.clone.expression import accepted_expression, odd_expression
from tunnelbridge.clone.rules import Rule

Way = Literal["in", "out"]


def rules_expression(rules: list[Rule], way: str) -> str | None:
    """Return an expression for all packets: odd ones are accepted, whatever they are."""
    accepted = accepted_expression(rules, way)
    return f"{odd_expression(rules)} or {accepted}" if accepted else accepted


def said_by_libpcap(expression: str | None, packets: list[Packet]) -> list[bool]:
    if expression is None:
        return [False] * len(packets)
    batch = from_packets([packet.frame for packet in packets])
    return [verdict != 0 for verdict in judged(compiled(expression), batch)]


def check(rules: list[Rule], packets: list[Packet], way: Way) -> None:
    said = said_by_libpcap(rules_expression(rules, way), packets)
    for packet, is_accepted in zip(packets, said, strict=True):
        wanted = accepts(rules, packet, way == "in")
        if packet.plain:
            assert is_accepted == wanted, packet
        else:
            assert is_accepted or not wanted, packet


@given(st.integers(0, 2**32), st.integers(0, 8), st.sampled_from(["in", "out"]))
@settings(max_examples=150, deadline=None)
def test_never_refuses_what_the_rules_accept(seed: int, count: int, way: Way) -> None:
    dice = random.Random(seed)
    rules = some_rules(dice, count)
    check(rules, [*some_packets(dice, 30, plain=True), *some_packets(dice, 40)], way)


@pytest.mark.parametrize("reject", REJECTING, ids=str)
def test_what_only_looks_rejected(reject: Rule) -> None:
    """Ports in the padding, addresses behind another version: libpcap would read them."""
    check([reject, Rule()], some_packets(random.Random(3), 3000), "in")


def test_long_lists() -> None:
    dice = random.Random(1)
    for count in (40, 80):
        rules = some_rules(dice, count)
        rules = [rule for rule in rules if not rule.matches_all]
        check(rules, some_packets(dice, 500, plain=True), "in")
        check(rules, some_packets(dice, 500), "out")


TCP = Rule(protocol=6)
NOT_TCP = Rule(accept=False, protocol=6)
ALL, NONE = Rule(), Rule(accept=False)


@pytest.mark.parametrize(
    ("rules", "expression"),
    [
        ([], None),
        ([NONE], None),
        ([NONE, TCP], None),
        ([NOT_TCP, NONE, ALL], None),
        ([NOT_TCP], None),
        ([Rule(direction="out")], None),
        ([ALL], ""),
        ([TCP, ALL], ""),
        ([ALL, NONE], ""),
        ([Rule(direction="out", accept=False), ALL], ""),
    ],
    ids=str,
)
def test_everything_and_nothing(rules: list[Rule], expression: str | None) -> None:
    assert rules_expression(rules, "in") == expression


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ([TCP], "(proto 6)"),
        ([TCP, Rule(family=4, protocol=17)], "((proto 6) or (ip proto 17))"),
        ([NOT_TCP, ALL], "(not (proto 6))"),
        ([NOT_TCP, Rule(family=6), NONE, TCP], "(not (proto 6) and (ip6))"),
        ([TCP, Rule(accept=False, family=4), ALL], "((proto 6) or (not (ip)))"),
        (
            [Rule(source=ip_network("10.0.0.0/8"), destination=ip_network("0.0.0.0/0"))],
            "(ip and ip src net 10.0.0.0/8)",
        ),
        (
            [Rule(protocol=17, destination_ports=((1, 5), (9, 9)))],
            "(proto 17 and (udp dst portrange 1-5 or udp dst portrange 9-9))",
        ),
    ],
    ids=str,
)
def test_the_words(rules: list[Rule], words: str) -> None:
    """The first rule that matches decides; what is odd comes before all of them."""
    expression = rules_expression(rules, "in")
    assert expression is not None
    assert expression.endswith(f" or {words}")


@pytest.mark.parametrize("tpid", [0x8100, 0x88A8, 0x9100, 0x9200])
def test_tags_in_the_octets_are_looked_behind_later(tpid: int) -> None:
    tagged = Packet(bytes(12) + tpid.to_bytes(2) + b"\0\5\x08\0" + bytes(40))
    untagged = Packet(bytes(12) + b"\x88\xb5" + bytes(44))
    assert said_by_libpcap(rules_expression([TCP], "in"), [tagged, untagged]) == [True, False]


def test_ports_make_more_packets_odd() -> None:
    """A later fragment and UDP-Lite are decided by their protocol alone, unless ports matter."""
    header = bytes.fromhex("0800 45000030 00000001 40110000 0a000001 0a000002")
    fragment = Packet(bytes(12) + header + bytes(28), 4, 17)
    rules = [Rule(protocol=6)]
    assert said_by_libpcap(rules_expression(rules, "in"), [fragment]) == [False]
    rules = [Rule(protocol=6, destination_ports=((80, 80),))]
    assert said_by_libpcap(rules_expression(rules, "in"), [fragment]) == [True]
