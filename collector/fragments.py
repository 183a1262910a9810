"""Read one IP fragment, and write the header of the datagram that it belongs to.

Sources: RFC 791 §3.1 (IPv4), RFC 8200 §4.5 (IPv6). Scalar code: fragments are rare.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_IPV4_HEADER: Final = 20
_IPV6_HEADER: Final = 40
_FRAGMENT_HEADER: Final = 8
_FRAGMENT: Final = 44
_BEFORE_FRAGMENT: Final = frozenset({0, 43, 60})
"""IPv6 extension headers that may stand before a fragment header: hop-by-hop, routing, options."""
_MORE_IPV4: Final = 0x2000
_OFFSET_IPV4: Final = 0x1FFF
_LONGEST: Final = 65535


class Fragment(NamedTuple):
    """One fragment: of which datagram, which part of it, and the datagram's header so far."""

    key: tuple[bytes, ...]
    """Empty for a packet that is no fragment."""
    offset: int
    more: bool
    data: bytes
    header: bytes
    """What stands before the data once the datagram is whole; its lengths are not right yet."""

    @property
    def end(self) -> int:
        """Where the next fragment's data begins."""
        return self.offset + len(self.data)


_WHOLE: Final = Fragment((), 0, False, b"", b"")


def parse(packet: bytes) -> Fragment | None:
    """Read a packet from its IP header on; None where it cannot be a fragment of anything."""
    version = packet[0] >> 4 if packet else 0
    if version == 4:
        return _parse_ipv4(packet)
    return _parse_ipv6(packet) if version == 6 else None


def _parse_ipv4(packet: bytes) -> Fragment | None:
    header_length = (packet[0] & 0xF) * 4
    total = int.from_bytes(packet[2:4], "big")
    if not _IPV4_HEADER <= header_length <= total <= len(packet):
        return None
    word = int.from_bytes(packet[6:8], "big")
    if not word & (_MORE_IPV4 | _OFFSET_IPV4):
        return _WHOLE
    header = bytearray(packet[:header_length])
    header[6] &= 0xDF  # not "more fragments"; the offset of a first fragment is 0 anyway
    key = (packet[12:16], packet[16:20], packet[9:10], packet[4:6])
    more, offset = bool(word & _MORE_IPV4), (word & _OFFSET_IPV4) * 8
    return _checked(Fragment(key, offset, more, packet[header_length:total], bytes(header)))


def _parse_ipv6(packet: bytes) -> Fragment | None:
    end = _IPV6_HEADER + int.from_bytes(packet[4:6], "big")
    if len(packet) < max(end, _IPV6_HEADER):
        return None
    names_next, position = 6, _IPV6_HEADER  # where the next header's number stands, and it itself
    while packet[names_next] in _BEFORE_FRAGMENT:
        if position + _FRAGMENT_HEADER > end:
            return None
        names_next, position = position, position + 8 + packet[position + 1] * 8
    if packet[names_next] != _FRAGMENT:
        return _WHOLE
    data = position + _FRAGMENT_HEADER
    if data > end:
        return None
    header = bytearray(packet[:position])
    header[names_next] = packet[position]
    word = int.from_bytes(packet[position + 2 : position + 4], "big")
    key = (packet[8:24], packet[24:40], packet[position + 4 : data])
    return _checked(Fragment(key, word & 0xFFF8, bool(word & 1), packet[data:end], bytes(header)))


def _checked(fragment: Fragment) -> Fragment | None:
    """Refuse fragments that add nothing or leave a gap that no other can fill."""
    if fragment.offset == 0 and not fragment.more:
        return fragment
    if not fragment.data or (fragment.more and len(fragment.data) % 8):
        return None
    return fragment


def too_long(header: bytes, data: int) -> bool:
    """Tell whether ``data`` octets after ``header`` exceed what a length field can say."""
    counted = len(header) - (0 if header[0] >> 4 == 4 else _IPV6_HEADER)
    return counted + data > _LONGEST


def with_lengths(header: bytes, data: int) -> bytes:
    """Return ``header`` as that of a packet with ``data`` octets after it, IPv4 checksum included."""
    result = bytearray(header)
    if header[0] >> 4 == 6:
        result[4:6] = (len(header) - _IPV6_HEADER + data).to_bytes(2, "big")
        return bytes(result)
    result[2:4] = (len(header) + data).to_bytes(2, "big")
    result[10:12] = b"\0\0"
    total = sum(int.from_bytes(result[at : at + 2], "big") for at in range(0, len(result), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    result[10:12] = (total ^ 0xFFFF).to_bytes(2, "big")
    return bytes(result)
