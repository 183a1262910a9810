"""Packets whose fields are known because they were written down first, and rules tried one by one.

The classifier, the tcpdump expressions and the kernel's programs are judged by this. Values come
from small pools, with the borders in them, so that rules and packets meet.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from tunnelbridge.clone.rules import Rule

MACS = bytes.fromhex("020000000002 020000000001")
PORTS = (0, 1, 79, 80, 81, 1024, 65534, 65535)
PORTED = (6, 17, 33, 132, 136)
PORTS_BEYOND_LIBPCAP = (33, 136)
PROTOCOLS = (1, 6, 6, 17, 17, 33, 47, 58, 132, 136, 255)
ADDRESSES4 = tuple(
    IPv4Address(number << 8 | last)
    for number, last in ((0, 0), (0xA0000, 0), (0xA0000, 1), (0xA0000, 255), (0xA0001, 0), (0xA0100, 9),
                         (0x7FFFFF, 255), (0x800000, 0), (0xFFFFFF, 255))
)  # fmt: skip
ADDRESSES6 = tuple(
    IPv6Address(high << 64 | low)
    for high, low in ((0, 0), (0xFD00 << 48, 0), (0xFD00 << 48, 1), (0xFD00 << 48, 1 << 63),
                      ((0xFD00 << 48) + 1, 0), ((0xFD00 << 48) + 1, 1), (0xFD01 << 48, 1), (1 << 63, 0),
                      ((1 << 63) - 1, (1 << 64) - 1), ((1 << 64) - 1, (1 << 64) - 1))
)  # fmt: skip
PREFIXES = {4: (0, 1, 8, 15, 16, 17, 24, 25, 31, 32), 6: (0, 1, 16, 63, 64, 65, 80, 127, 128)}
NON_IP = (0x0806, 0x88B5, 0x8847, 0x0026, 0x8864)


@dataclass(frozen=True)
class Packet:
    """A frame and what is in it; ``plain``: libpcap sees it as we do."""

    frame: bytes
    family: int = 0
    protocol: int = -1
    source: int = 0
    destination: int = 0
    source_port: int = -1
    destination_port: int = -1
    plain: bool = True


def matches(rule: Rule, packet: Packet, inbound: bool) -> bool:
    """Tell whether a rule matches, field by field."""
    if rule.direction == "in" and not inbound:
        return False
    if rule.direction == "out" and inbound:
        return False
    if rule.family and packet.family != rule.family:
        return False
    if rule.protocol is not None and (packet.family == 0 or packet.protocol != rule.protocol):
        return False
    for network, address in ((rule.source, packet.source), (rule.destination, packet.destination)):
        if network is not None:
            if packet.family != network.version:
                return False
            if not int(network.network_address) <= address <= int(network.broadcast_address):
                return False
    for ranges, port in (
        (rule.source_ports, packet.source_port),
        (rule.destination_ports, packet.destination_port),
    ):
        if ranges is not None and (port == -1 or not any(a <= port <= b for a, b in ranges)):
            return False
    return True


def decided_by(rules: Sequence[Rule], packet: Packet, inbound: bool) -> int:
    """Return the first rule that matches, -1 for none."""
    for number, rule in enumerate(rules):
        if matches(rule, packet, inbound):
            return number
    return -1


def accepts(rules: Sequence[Rule], packet: Packet, inbound: bool) -> bool:
    number = decided_by(rules, packet, inbound)
    return number >= 0 and rules[number].accept


def some_rule(dice: random.Random) -> Rule:
    """Return a rule that says something of some fields."""
    family = dice.choice((0, 0, 4, 4, 6))
    version = family or dice.choice((4, 6))
    protocol = dice.choice((None, None, *PROTOCOLS))
    ported = protocol is None or protocol in PORTED
    return Rule(
        direction=dice.choice(("both", "both", "in", "out")),
        accept=dice.random() < 0.6,
        family=family,
        protocol=protocol,
        source=_network(dice, version) if dice.random() < 0.4 else None,
        destination=_network(dice, version) if dice.random() < 0.4 else None,
        source_ports=_ranges(dice) if ported and dice.random() < 0.2 else None,
        destination_ports=_ranges(dice) if ported and dice.random() < 0.4 else None,
    )


def some_rules(dice: random.Random, count: int) -> list[Rule]:
    return [some_rule(dice) for _ in range(count)]


def _network(dice: random.Random, version: int) -> IPv4Network | IPv6Network:
    address = dice.choice(ADDRESSES4 if version == 4 else ADDRESSES6)
    return ip_network((address.packed, dice.choice(PREFIXES[version])), strict=False)


def _ranges(dice: random.Random) -> tuple[tuple[int, int], ...]:
    pairs = [sorted(dice.choices(PORTS, k=2)) for _ in range(dice.choice((1, 1, 2)))]
    return tuple((low, high) for low, high in pairs)


def some_packet(dice: random.Random, plain: bool = False) -> Packet:
    """Return a packet of any sort, or one without tags, fragments, extensions and faults."""
    kind = dice.random()
    if kind < 0.15:
        packet = _non_ip(dice)
    elif kind < 0.6:
        packet = _ipv4(dice, plain)
    else:
        packet = _ipv6(dice, plain)
    return packet if plain or dice.random() < 0.8 else _tagged(dice, packet)


def some_packets(dice: random.Random, count: int, plain: bool = False) -> list[Packet]:
    return [some_packet(dice, plain) for _ in range(count)]


def _non_ip(dice: random.Random) -> Packet:
    body = dice.randbytes(46)
    return Packet(MACS + dice.choice(NON_IP).to_bytes(2) + body)


def _tagged(dice: random.Random, packet: Packet) -> Packet:
    tags = b"".join(
        struct.pack("!HH", dice.choice((0x8100, 0x88A8, 0x9100, 0x9200)), dice.randrange(65536))
        for _ in range(dice.choice((1, 2)))
    )
    fields = {**packet.__dict__, "frame": MACS + tags + packet.frame[12:], "plain": False}
    return Packet(**fields)


def _ports(dice: random.Random, protocol: int) -> tuple[int, int, bytes]:
    """Return source and destination port, and what stands behind the IP header."""
    first, second = dice.choice(PORTS), dice.choice(PORTS)
    body = struct.pack("!HH", first, second) + dice.randbytes(dice.choice((8, 20)))
    return (first, second, body) if protocol in PORTED else (-1, -1, body)


def _ipv4(dice: random.Random, plain: bool) -> Packet:
    sorts = (
        "",
        "",
        "first",
        "later",
        "short",
        "version",
        "ihl",
        "zero",
        "tiny",
        "cut",
        "cut ports",
    )
    sort = "" if plain else dice.choice(sorts)
    protocol = dice.choice(PROTOCOLS)
    source, destination = int(dice.choice(ADDRESSES4)), int(dice.choice(ADDRESSES4))
    first, second, body = _ports(dice, protocol)
    options = dice.randbytes(4 * dice.choice((0, 0, 0, 1, 10)))
    version, words, fragment, padding = 4, 5 + len(options) // 4, 0x4000, b""
    family, seen = 4, protocol
    if sort == "first":
        fragment = 0x2000
    elif sort == "later":
        fragment, first, second = dice.choice((0x2001, 1, 0x1FFF)), -1, -1
    elif sort == "short":  # the padding behind it is not its ports
        body, padding, first, second = body[: dice.randrange(4)], body, -1, -1
    elif sort == "version":
        version, family = dice.choice((0, 5, 6, 15)), 0
    elif sort == "ihl":  # the addresses are there, but where the rest is nobody knows
        words, seen, first, second = dice.randrange(5), -1, -1, -1
    length = 20 + len(options) + len(body)
    if sort == "zero":  # a super-packet: it ends where the frame does
        length = 0
    elif sort == "tiny":  # it ends before its addresses
        length, family = dice.randrange(1, 20), 0
    header = _header4(version, words, length, fragment, protocol)
    frame = MACS + b"\x08\x00" + header + _addresses(source, destination, 4) + options + body
    frame += padding
    if sort == "cut":
        frame, family = frame[: dice.randrange(14, 34)], 0
    elif sort == "cut ports":  # or the options before them: then they may be anything
        frame = frame[: dice.randrange(34, 38 + len(options))]
        seen = protocol if len(frame) >= 34 + len(options) else -1
        first = second = -1
    if not family:
        return Packet(frame, plain=False)
    is_plain = plain and protocol not in PORTS_BEYOND_LIBPCAP
    return Packet(frame, 4, seen, source, destination, first, second, is_plain)


def _header4(version: int, words: int, length: int, fragment: int, protocol: int) -> bytes:
    return struct.pack("!BBHHHBBH", version << 4 | words, 0, length, 7, fragment, 64, protocol, 0)


def _addresses(source: int, destination: int, octets: int) -> bytes:
    return source.to_bytes(octets) + destination.to_bytes(octets)


def _ipv6(dice: random.Random, plain: bool) -> Packet:
    protocol = dice.choice(PROTOCOLS)
    source, destination = int(dice.choice(ADDRESSES6)), int(dice.choice(ADDRESSES6))
    first, second, body = _ports(dice, protocol)
    version, next_header, padding = 6, protocol, b""
    sorts = ("", "options", "first", "later", "short", "version", "cut", "cut ports", "broken")
    sort = "" if plain else dice.choice(sorts)
    extensions = dice.choices((0, 43, 51, 60), k=dice.choice((1, 2)))
    for extension in extensions if sort == "options" else ():
        octets = 16 if extension == 51 else 8
        length = 2 if extension == 51 else 0
        body = struct.pack("!BB", next_header, length) + bytes(octets - 2) + body
        next_header = extension
    if sort in ("first", "later"):
        offset = dice.choice((0, 1)) if sort == "first" else dice.choice((8, 9, 0xFFF8))
        body = struct.pack("!BBHI", next_header, 0, offset, 99) + body
        next_header = 44
        if sort == "later":
            first = second = -1
    elif sort == "short":  # a length of zero would be that of a super-packet
        body, padding, first, second = body[: dice.randrange(1, 4)], body, -1, -1
    elif sort == "version":
        version = 4
    elif sort == "broken":  # an extension header longer than the packet
        body, next_header, protocol, first, second = b"\x06\xff" + body, 60, -1, -1, -1
    header = struct.pack("!IHBB", version << 28 | 5, len(body), next_header, 64)
    frame = MACS + b"\x86\xdd" + header + _addresses(source, destination, 16) + body + padding
    if sort == "cut":
        frame = frame[: dice.randrange(14, 54)]
    elif sort == "cut ports":
        frame, first, second = frame[: dice.randrange(54, 58)], -1, -1
    if sort in ("version", "cut"):
        return Packet(frame, plain=False)
    is_plain = plain and protocol not in PORTS_BEYOND_LIBPCAP
    return Packet(frame, 6, protocol, source, destination, first, second, is_plain)


REJECTING = (
    Rule(accept=False, destination_ports=((0, 65535),)),
    Rule(accept=False, family=4),
    Rule(accept=False, family=6),
    Rule(accept=False, protocol=6),
    Rule(accept=False, protocol=60),
    Rule(accept=False, source=IPv4Network("10.0.0.0/8"), source_ports=((0, 65535),)),
    Rule(accept=False, source=IPv6Network("8000::/1")),
)
"""Each before a rule that accepts all: what is odd is accepted although its octets look like that."""
