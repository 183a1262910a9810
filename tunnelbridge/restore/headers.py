"""Find the headers of super-packets, from Ethernet through tunnels to the innermost TCP or UDP.

``hdr_len`` of the virtio-net header is only the length of the kernel's linear part, and
``csum_start`` names nothing but the innermost transport header. Cutting needs every IP header and
every outer checksum on the way there. All packets are walked at once, one tunnel level at a time.

What the kernel stacks above a mirrored interface: VLAN tags, IPv4 and IPv6 with extension headers,
IP in IP, GRE, and over UDP on any port VXLAN (also GPE), GENEVE and bare IP (FOU). These tell
themselves apart by their first octets (RFC 7348 §5, RFC 8926 §3.4, RFC 2784, RFC 2890).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Flags, Octets, zeros
from tunnelbridge.restore import heads
from tunnelbridge.wire.ethernet import IPV4, IPV6, MAX_TAGS, TAG_TYPES
from tunnelbridge.wire.ipv6 import AUTHENTICATION, EXTENSIONS, MAX_EXTENSIONS, ROUTING

LEVELS: Final = 4
"""How many IP headers with a transport between them are followed."""

ETHERNET: Final = 0x6558  # Transparent Ethernet Bridging: also "an Ethernet header is next" here
LOST: Final = 0

IPIP, TCP, UDP, SIX, GRE = 4, 6, 17, 41, 47
ABSENT: Final = -1
_GPE: Final = np.array([LOST, IPV4, IPV6, ETHERNET, LOST])
"""EtherTypes by next protocol of VXLAN-GPE (draft-ietf-nvo3-vxlan-gpe §3.2)."""

Levels = npt.NDArray[np.int64]
"""Shape (LEVELS, n): a column for each level of nesting, ABSENT where a packet has fewer."""


@dataclass(slots=True)
class Headers:
    """Where the headers of n packets are; offsets in octets from the start of the packet.

    ``found`` tells whether the walk arrived; the rest counts only there. ``network`` is the IP
    header, ``version`` 4 or 6, ``transport`` what follows it, ``protocol`` the number of that,
    ``destination`` the address that a pseudo-header has (a routing header moves it, RFC 8200 §8.1),
    ``jumbo`` the hop-by-hop header that the kernel puts into an IPv6 BIG TCP packet. ``last`` is the
    innermost level and ``end`` where its transport's payload begins.
    """

    found: Flags
    network: Levels
    version: Levels
    transport: Levels
    protocol: Levels
    destination: Levels
    jumbo: Levels
    last: Column
    end: Column

    def select(self, index: npt.NDArray[Any]) -> Headers:
        """Return those of the packets that ``index`` names."""
        return Headers(*(getattr(self, field.name)[..., index] for field in fields(self)))

    def innermost(self, levels: Levels) -> Column:
        """Return each packet's entry of its last level."""
        return levels[self.last, np.arange(len(self.last))]


@dataclass(slots=True)
class _Reader:
    """Fields at an offset from the start of each packet; past the memory's end anything may come."""

    memory: Octets
    start: Column

    def u8(self, offset: Column) -> Column:
        return heads.read(self.memory, self.start + offset, "u1")

    def u16(self, offset: Column) -> Column:
        return heads.read(self.memory, self.start + offset, ">u2")


def find(memory: Octets, start: Column, length: Column, wanted: Column, target: Column) -> Headers:
    """Walk each packet to the transport header it was marked to be cut at.

    ``wanted`` is TCP or UDP; ``target`` is ``csum_start``, or ABSENT: then the first header of the
    wanted protocol is meant. A walk that meets something unknown, does not arrive exactly at the
    target or leaves the packet is not ``found``.
    """
    count = len(start)
    network, version, transport, protocol, destination, jumbo = (
        np.full((LEVELS, count), ABSENT, np.int64) for _ in range(6)
    )
    found, last = np.zeros(count, np.bool_), zeros(count)
    reader = _Reader(memory, start)
    at, kind = zeros(count), np.full(count, ETHERNET, np.int64)
    for level in range(LEVELS):
        at, kind = _link(reader, at, kind)
        version[level] = _version(reader, at, kind)
        network[level] = np.where(version[level] != ABSENT, at, ABSENT)
        transport[level], protocol[level], destination[level], jumbo[level] = _internet(
            reader, at, version[level]
        )
        after, number = transport[level], protocol[level]
        arrived = (number == wanted) & ((target == ABSENT) | (after == target))
        last[arrived] = level
        found |= arrived
        at, kind = _tunnel(reader, after, np.where(arrived, ABSENT, number))
        if not kind.any():
            break
    end = zeros(count)
    headers = Headers(found, network, version, transport, protocol, destination, jumbo, last, end)
    inner = headers.innermost(transport)
    size = np.where(wanted == TCP, reader.u8(inner + 12) >> 4 << 2, 8)
    headers.end = inner + size
    headers.found = found & (headers.end <= length) & ((wanted == UDP) | (size >= 20))
    return headers


def _link(reader: _Reader, at: Column, kind: Column) -> tuple[Column, Column]:
    """Step over Ethernet headers and their tags; return where we are and the EtherType."""
    ethernet = kind == ETHERNET
    if not ethernet.any():
        return at, kind
    at = at + 12 * ethernet
    kind = np.where(ethernet, reader.u16(at), kind)
    for _ in range(MAX_TAGS):
        tagged = ethernet & np.isin(kind, TAG_TYPES)
        if not tagged.any():
            break
        at = at + 4 * tagged
        kind = np.where(tagged, reader.u16(at), kind)
    return at + 2 * ethernet, kind


def _version(reader: _Reader, at: Column, kind: Column) -> Column:
    """Return 4 or 6 where an IP header of the announced version is, ABSENT elsewhere."""
    first = reader.u8(at)
    four = (kind == IPV4) & (first >= 0x45) & (first <= 0x4F)
    six = (kind == IPV6) & (first >> 4 == 6)
    return np.where(four, 4, np.where(six, 6, ABSENT))


def _internet(
    reader: _Reader, at: Column, version: Column
) -> tuple[Column, Column, Column, Column]:
    """Return transport offset, protocol, destination offset and jumbo header of IP headers."""
    four, six = version == 4, version == 6
    size = np.where(four, (reader.u8(at) & 15) << 2, 40)
    after = np.where(four | six, at + size, ABSENT)
    number = reader.u8(at + np.where(four, 9, 6))
    number = np.where(four | six, number, ABSENT)
    destination = at + np.where(four, 16, 24)
    jumbo = np.full(len(at), ABSENT, np.int64)
    for _ in range(MAX_EXTENSIONS):
        extension = six & np.isin(number, EXTENSIONS)
        if not extension.any():
            break
        octets = (reader.u8(after + 1) + 1) << 3
        jumbo = np.where(extension & _is_jumbo(reader, after, number), after, jumbo)
        destination = np.where(
            extension & (number == ROUTING) & (reader.u8(after + 3) > 0),
            _final_address(reader, after, octets),
            destination,
        )
        octets = np.where(number == AUTHENTICATION, (reader.u8(after + 1) + 2) << 2, octets)
        number = np.where(extension, reader.u8(after), number)
        after = np.where(extension, after + octets, after)
    return after, number, destination, jumbo


def _is_jumbo(reader: _Reader, at: Column, number: Column) -> Flags:
    """Recognise the hop-by-hop header with nothing but a jumbo payload option (RFC 2675 §2)."""
    alone: Flags = (reader.u16(at) & 0xFF == 0) & (reader.u16(at + 2) == 0xC204)
    result: Flags = alone & (number == 0)
    return result


def _final_address(reader: _Reader, at: Column, octets: Column) -> Column:
    """Return where a routing header holds the last address: in an SRH (type 4) it is the first."""
    return np.where(reader.u8(at + 2) == 4, at + 8, at + octets - 16)


def _tunnel(reader: _Reader, at: Column, number: Column) -> tuple[Column, Column]:
    """Step over what lies between a transport protocol and the header it carries.

    Returns where that is and its EtherType, LOST where nothing is known about it.
    """
    kind = np.where(number == IPIP, IPV4, np.where(number == SIX, IPV6, LOST))
    gre, udp = number == GRE, number == UDP
    if gre.any():
        flags = reader.u16(at)
        optional = (flags >> 15 & 1) + (flags >> 13 & 1) + (flags >> 12 & 1)
        known = gre & (flags & 0x4FFF == 0)  # no routing, no reserved bit, version 0
        kind = np.where(known, reader.u16(at + 2), kind)
        at = np.where(known, at + 4 + 4 * optional, at)
    if udp.any():
        inner, carried = _over_udp(reader, at + 8)
        kind = np.where(udp, carried, kind)
        at = np.where(udp, inner, at)
    return at, kind


def _over_udp(reader: _Reader, at: Column) -> tuple[Column, Column]:
    """Recognise GENEVE, VXLAN, VXLAN-GPE and bare IP by their first octets."""
    first, type_ = reader.u8(at), reader.u16(at + 2)
    geneve = (first < 0x40) & np.isin(type_, (ETHERNET, IPV4, IPV6))
    vxlan = ~geneve & (first & 0x48 == 0x08)  # the I flag; 0x80 is a group policy
    carried = np.where(first & 0x04, _GPE[np.minimum(type_ & 0xFF, len(_GPE) - 1)], ETHERNET)
    bare = np.where(first >> 4 == 4, IPV4, np.where(first >> 4 == 6, IPV6, LOST))
    kind = np.where(geneve, type_, np.where(vxlan, carried, bare))
    inner = at + np.where(geneve, 8 + 4 * (first & 0x3F), np.where(vxlan, 8, 0))
    return inner, kind
