"""A packet from a line of text, for ``explain``: ``tcp 192.0.2.1:1234 > 198.51.100.2:80``."""

from __future__ import annotations

import ipaddress
import re
import struct
from typing import Final

from tunnelbridge.clone.rules import PORT_PROTOCOLS, PROTOCOLS, protocol_number
from tunnelbridge.errors import UsageError

_FORM: Final = re.compile(
    r"\s*(?P<protocol>[\w-]+)\s+(?P<source>\S+)\s*>\s*(?P<destination>\S+)\s*"
)
_END: Final = re.compile(
    r"\[(?P<v6>[^\]]+)\](:(?P<port6>\d+))?|(?P<v4>[\d.]+)(:(?P<port4>\d+))?|(?P<bare>[\da-fA-F:]+)"
)
_MACS: Final = bytes.fromhex("020000000002 020000000001")
_HEADERS: Final = {6: 20, 17: 8, 132: 12}
"""Octets of a header without payload; other protocols get eight."""


def build(text: str) -> bytes:
    """Return an Ethernet frame of the smallest packet that ``text`` describes.

    Checksums are left 0: nobody receives it. Raises UsageError.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise UsageError(
            f"packet {text!r}: expected PROTOCOL SOURCE[:PORT] > DESTINATION[:PORT], as in"
            " 'tcp 192.0.2.1:1234 > 198.51.100.2:80'; IPv6 with ports in brackets"
        )
    protocol = _protocol(text, match["protocol"])
    source, source_port = _end(text, match["source"])
    destination, destination_port = _end(text, match["destination"])
    if source.version != destination.version:
        raise UsageError(f"packet {text!r}: {source} and {destination} are of two IP versions")
    if protocol not in PORT_PROTOCOLS and (source_port or destination_port):
        raise UsageError(f"packet {text!r}: {match['protocol']} has no ports")
    payload = _upper(protocol, source_port, destination_port)
    if source.version == 4:
        header = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0,
            source.packed, destination.packed,
        )  # fmt: skip
        return _MACS + b"\x08\x00" + header + payload
    header = struct.pack(
        ">IHBB16s16s", 6 << 28, len(payload), protocol, 64, source.packed, destination.packed
    )
    return _MACS + b"\x86\xdd" + header + payload


def _protocol(text: str, word: str) -> int:
    try:
        number = protocol_number(word)
    except ValueError as error:
        raise UsageError(f"packet {text!r}: {error}") from None
    if number is None:
        raise UsageError(f"packet {text!r}: name one protocol, as {', '.join(list(PROTOCOLS)[:4])}")
    return number


def _end(text: str, word: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    match = _END.fullmatch(word)
    try:
        if match is None:
            raise ValueError
        address = ipaddress.ip_address(match["v6"] or match["v4"] or match["bare"])
        port = int(match["port6"] or match["port4"] or 0)
    except ValueError:
        raise UsageError(f"packet {text!r}: {word} is not an address, or ADDRESS:PORT") from None
    if port > 65535:
        raise UsageError(f"packet {text!r}: {word}: a port is at most 65535")
    return address, port


def _upper(protocol: int, source_port: int, destination_port: int) -> bytes:
    size = _HEADERS.get(protocol, 8)
    if protocol not in PORT_PROTOCOLS:
        return bytes([8]) + bytes(size - 1) if protocol == 1 else bytes(size)
    header = struct.pack(">HH", source_port, destination_port) + bytes(size - 4)
    if protocol == 6:
        return header[:12] + bytes([0x50, 0x02]) + header[14:]  # data offset, SYN
    if protocol == 17:
        return header[:4] + struct.pack(">HH", size, 0)
    return header
