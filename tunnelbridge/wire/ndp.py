"""Neighbour solicitations and advertisements (RFC 4861 §4.3, §4.4) in their IPv6 packets.

     0                   1                   2                   3
    | Type 135, 136 |    Code 0     |          Checksum             |
    |R|S|O|                     Reserved                            |
    |                     Target Address (16)                       |
    | Option type   | Length (in 8) |    Link-layer address ...     |

A solicitation has no flags; option 1 is the link-layer address of its source, option 2 that of an
advertisement's target. Sender: the hop limit is 255; duplicate address detection asks from ``::`` and
without option 1 (RFC 4862 §5.4.2). Receiver (§7.1): hop limit 255 (so no router forwarded it), a good
checksum, code 0, 24 octets or more, a target that is not multicast, no option of length 0; a
solicitation from ``::`` goes to a solicited-node address and has no option 1; an advertisement to a
multicast address is not flagged solicited. Unknown options are skipped.

Control traffic: :func:`decode` reads one packet, not a batch. Extension headers are not read: senders
have no reason for them here, and fragments are forbidden (RFC 6980).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tunnelbridge.wire import ipv6
from tunnelbridge.wire.octets import checksum, sum_words

HEADER: Final = np.dtype(
    [("type", "u1"), ("code", "u1"), ("checksum", ">u2"), ("flags", ">u4"), ("target", "V16")]
)
SOLICITATION: Final = 135
ADVERTISEMENT: Final = 136
SOLICITED: Final = 1 << 30
OVERRIDE: Final = 1 << 29
UNSPECIFIED: Final = bytes(16)
ALL_NODES: Final = bytes.fromhex("ff02" + "00" * 13 + "01")

_ICMPV6: Final = 58
_HOP_LIMIT: Final = 255
_SOLICITED_NODE: Final = bytes.fromhex("ff02" + "00" * 9 + "01ff")
_LINK_ADDRESS: Final = {SOLICITATION: 1, ADVERTISEMENT: 2}
"""The option that holds a link-layer address, by message."""


class Message(NamedTuple):
    """One message and the ends of its IPv6 packet: addresses of 16 octets."""

    type: int
    source: bytes
    destination: bytes
    target: bytes
    flags: int
    link_address: bytes | None
    """The MAC address in the option that goes with this type; None without one."""


def solicited_node(address: bytes) -> bytes:
    """Return the multicast address on which the owner of ``address`` is asked (RFC 4291 §2.7.1)."""
    return _SOLICITED_NODE + address[-3:]


def multicast_mac(group: bytes) -> bytes:
    """Return the MAC address of an IPv6 multicast address (RFC 2464 §7)."""
    return b"\x33\x33" + group[-4:]


def template(message: Message) -> npt.NDArray[np.uint8]:
    """Return a message in its IPv6 packet, ready to be sent, shape (64,) or (72,)."""
    header = np.zeros(1, HEADER)
    header["type"], header["flags"] = message.type, message.flags
    header["target"] = np.void(message.target)
    option = b""
    if message.link_address is not None:
        option = bytes([_LINK_ADDRESS[message.type], 1]) + message.link_address
    carrier = np.zeros(1, ipv6.HEADER)
    carrier["version_class_flow"] = 6 << 28
    carrier["payload_length"] = header.itemsize + len(option)
    carrier["next_header"], carrier["hop_limit"] = _ICMPV6, _HOP_LIMIT
    carrier["source"] = np.void(message.source)
    carrier["destination"] = np.void(message.destination)
    total = _sum(message.source, message.destination, header.tobytes() + option)
    header["checksum"] = checksum(total)[0]
    return np.frombuffer(carrier.tobytes() + header.tobytes() + option, np.uint8)


def decode(packet: bytes) -> Message | None:
    """Read one IPv6 packet; None where it is neither message, or one to be discarded (§7.1)."""
    if len(packet) < ipv6.HEADER.itemsize + HEADER.itemsize:
        return None
    carrier = np.frombuffer(packet, ipv6.HEADER, 1)[0]
    body = packet[ipv6.HEADER.itemsize :][: int(carrier["payload_length"])]
    if len(body) != carrier["payload_length"] or len(body) < HEADER.itemsize:
        return None
    if packet[0] >> 4 != 6 or (carrier["next_header"], carrier["hop_limit"]) != (
        _ICMPV6,
        _HOP_LIMIT,
    ):
        return None
    header = np.frombuffer(body, HEADER, 1)[0]
    source, destination = carrier["source"].tobytes(), carrier["destination"].tobytes()
    options = _options(body[HEADER.itemsize :])
    if header["type"] not in _LINK_ADDRESS or header["code"] != 0 or options is None:
        return None
    if _sum(source, destination, body)[0] != 0xFFFF:
        return None
    kind = int(header["type"])
    link_address = options.get(_LINK_ADDRESS[kind])
    message = Message(
        kind, source, destination, header["target"].tobytes(), int(header["flags"]), link_address
    )
    return message if _is_valid(message) else None


def _is_valid(message: Message) -> bool:
    """Check what RFC 4861 §7.1 asks of the addresses."""
    is_group = message.destination[0] == 0xFF
    if message.target[0] == 0xFF:
        return False
    if message.type == ADVERTISEMENT:
        return not (is_group and message.flags & SOLICITED)
    if message.source == UNSPECIFIED:
        return message.destination.startswith(_SOLICITED_NODE) and message.link_address is None
    return True


def _options(octets: bytes) -> dict[int, bytes] | None:
    """Return the first MAC address of each option that can hold one; None where one is malformed."""
    found: dict[int, bytes] = {}
    while octets:
        length = octets[1] * 8 if len(octets) > 1 else 0
        if not 0 < length <= len(octets):
            return None
        if length == 8:  # Ethernet's: two octets and a MAC address
            found.setdefault(octets[0], octets[2:8])
        octets = octets[length:]
    return found


def _sum(source: bytes, destination: bytes, body: bytes) -> npt.NDArray[np.uint32]:
    """Sum a message with its pseudo-header (RFC 8200 §8.1), shape (1,)."""
    pseudo = source + destination + len(body).to_bytes(4) + _ICMPV6.to_bytes(4)
    octets = np.frombuffer(pseudo + body, np.uint8)
    return sum_words(octets, np.zeros(1, np.int64), np.array([len(octets)]))
