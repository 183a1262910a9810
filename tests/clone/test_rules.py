"""Rules as values: names, port lists, and fields that contradict each other."""

from __future__ import annotations

import itertools
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelbridge.clone.rules import PROTOCOLS, Rule, parse_ports, protocol_number, swapped


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("tcp", 6), ("TCP", 6), (" udp ", 17), ("icmp", 1), ("icmpv6", 58), ("icmp6", 58), ("gre", 47),
        ("ah", 51), ("esp", 50), ("sctp", 132), ("igmp", 2), ("ipip", 4), ("0", 0), (0, 0), (255, 255),
        ("089", 89), ("all", None), ("any", None), ("ANY", None), ("-1", None), (-1, None),
    ],
)  # fmt: skip
def test_protocols(text: str | int, number: int | None) -> None:
    assert protocol_number(text) == number


def test_names_are_those_of_the_system() -> None:
    """The C library's table, which is IANA's, knows the same numbers."""
    file = Path("/etc/protocols")
    if not file.exists():
        pytest.skip("needs /etc/protocols (netbase)")
    known = {}
    for line in file.read_text().splitlines():
        name, number, *_ = [*line.partition("#")[0].split(), "", ""]
        if number:
            known[name.replace("ipv6-icmp", "icmpv6").replace("mpls-in-ip", "mpls")] = int(number)
    known["ipip"] = known["ipencap"]
    assert {name: known[name] for name in PROTOCOLS if name in known} == {
        name: number for name, number in PROTOCOLS.items() if name in known
    }
    assert len(set(PROTOCOLS) & set(known)) >= 15


@pytest.mark.parametrize("text", ["", "tpc", "256", "-2", "1.5", "６", "0x6", 256, -2])
def test_wrong_protocols(text: str | int) -> None:
    with pytest.raises(ValueError, match=r"^must be all, a number from 0 to 255 or one of icmp, "):
        protocol_number(text)


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("all", None),
        ("ANY", None),
        ("-1", None),
        ("0-65535", None),
        ("0-80,81-65535", None),
        ("1-65535", ((1, 65535),)),
        ("80", ((80, 80),)),
        (80, ((80, 80),)),
        ("0", ((0, 0),)),
        ("65535", ((65535, 65535),)),
        ("80,443", ((80, 80), (443, 443))),
        ("443, 80", ((80, 80), (443, 443))),
        ("80-90,443", ((80, 90), (443, 443))),
        (" 80 - 90 ", ((80, 90),)),
        ("80-90,85-95,96", ((80, 96),)),
        ("80-100,85-90", ((80, 100),)),
        ("5-5", ((5, 5),)),
    ],
)
def test_ports(text: str | int, ranges: Any) -> None:
    assert parse_ports(text) == ranges


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is not all, a port"),
        ("http", "'http' is not all, a port"),
        ("65536", "'65536' is not all, a port"),
        ("80-", "'80-' is not all, a port"),
        ("-80", "'-80' is not all, a port"),
        ("80,", "'' is not all, a port"),
        ("80-90-100", "'80-90-100' is not all, a port"),
        ("90-80", "90-80 ends before it begins"),
        ("٣", "is not all, a port"),
    ],
)
def test_wrong_ports(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_ports(text)


@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 300)), min_size=1, max_size=6))
def test_the_same_ports_whatever_their_order(parts: list[tuple[int, int]]) -> None:
    pairs = [(low, min(low + more, 65535)) for low, more in parts]
    ranges = parse_ports(",".join(f"{low}-{high}" for low, high in pairs)) or ((0, 65535),)
    expected = {port for low, high in pairs for port in range(low, high + 1)}
    assert {port for low, high in ranges for port in range(low, high + 1)} == expected
    assert all(before[1] + 1 < after[0] for before, after in itertools.pairwise(ranges))


V4, V6 = ip_network("10.0.0.0/8"), ip_network("fd00::/8")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"family": 6, "source": V4}, "source 10.0.0.0/8 is not IPv6"),
        ({"family": 4, "destination": V6}, "destination fd00::/8 is not IPv4"),
        ({"source": V6, "destination": V4}, "destination 10.0.0.0/8 is not IPv6"),
        (
            {"protocol": 1, "source_ports": ((1, 2),)},
            "only tcp, udp, dccp, sctp, udplite have ports",
        ),
        ({"destination_ports": ()}, "no ports at all"),
    ],
)
def test_fields_that_contradict(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Rule(**fields)


def test_what_a_rule_demands() -> None:
    assert Rule().matches_all
    assert Rule(direction="in", accept=False).matches_all
    for rule, family in (
        (Rule(family=4), 4), (Rule(source=V6), 6), (Rule(destination=V4), 4), (Rule(protocol=6), 0),
        (Rule(source_ports=((0, 65535),)), 0),
    ):  # fmt: skip
        assert not rule.matches_all
        assert rule.any_family == family


def test_the_view_of_a_guest() -> None:
    rules = [Rule(direction="in", name="a"), Rule(direction="out", protocol=6), Rule(accept=False)]
    assert swapped(rules) == [
        Rule(direction="out", name="a"), Rule(direction="in", protocol=6), Rule(accept=False),
    ]  # fmt: skip
