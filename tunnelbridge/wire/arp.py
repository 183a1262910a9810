"""ARP for IPv4 over Ethernet (RFC 826), as probe and announcement too (RFC 5227).

     0                   1                   2                   3
    |     Hardware type 1           |     Protocol type 0x0800      |
    |  HLen 6       |  PLen 4       |  Operation: 1 request, 2 reply |
    |                   Sender hardware address ...                 |
    |      ...                      |   Sender protocol address ... |
    |      ...                      |   Target hardware address ... |
    |                     ...                                       |
    |                   Target protocol address                     |

Sender: a probe is a request whose sender protocol address is 0 (RFC 5227 §2.1.1); an announcement a
request whose sender and target protocol addresses are the same (§2.3). The target hardware address
of a request is 0. Receiver: other hardware, other protocols and other lengths are not for us; type 6
(IEEE 802) means the same as 1, as in Linux (net/ipv4/arp.c); what follows 28 octets is padding.

Control traffic: :func:`decode` reads one message, not a batch.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

HEADER: Final = np.dtype(
    [
        ("hardware", ">u2"),
        ("protocol", ">u2"),
        ("hardware_length", "u1"),
        ("protocol_length", "u1"),
        ("operation", ">u2"),
        ("sender_mac", "V6"),
        ("sender_ip", "V4"),
        ("target_mac", "V6"),
        ("target_ip", "V4"),
    ]
)
REQUEST: Final = 1
REPLY: Final = 2
NOBODY: Final = bytes(4)
"""The sender's address in a probe."""
UNKNOWN_MAC: Final = bytes(6)

_ETHERNET: Final = 1
_IEEE_802: Final = 6
_IPV4: Final = 0x0800


class Message(NamedTuple):
    """One ARP message: MAC addresses of 6 octets, IPv4 addresses of 4."""

    operation: int
    sender_mac: bytes
    sender_ip: bytes
    target_mac: bytes
    target_ip: bytes


def template(
    operation: int,
    sender_mac: bytes,
    sender_ip: bytes,
    target_mac: bytes,
    target_ip: bytes,
) -> npt.NDArray[np.void]:
    """Return one message, 28 octets."""
    addresses = sender_mac + sender_ip + target_mac + target_ip
    record = np.zeros(1, HEADER)
    record["hardware"], record["protocol"] = _ETHERNET, _IPV4
    record["hardware_length"], record["protocol_length"] = 6, 4
    record["operation"] = operation
    record.view(np.uint8)[-len(addresses) :] = np.frombuffer(addresses, np.uint8)
    return record


def decode(packet: bytes) -> Message | None:
    """Read one ARP packet, padding allowed; None where it is not of IPv4 over Ethernet."""
    if len(packet) < HEADER.itemsize:
        return None
    header = np.frombuffer(packet, HEADER, 1)[0]
    lengths = (header["hardware_length"], header["protocol_length"])
    if header["hardware"] not in (_ETHERNET, _IEEE_802) or header["protocol"] != _IPV4:
        return None
    if lengths != (6, 4) or header["operation"] not in (REQUEST, REPLY):
        return None
    addresses = ("sender_mac", "sender_ip", "target_mac", "target_ip")
    return Message(int(header["operation"]), *(header[name].tobytes() for name in addresses))
