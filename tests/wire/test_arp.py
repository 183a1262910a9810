"""ARP: scapy builds what we read, and reads what we build; what is not ARP for IPv4 is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.l2 import ARP

from tunnelbridge.wire import arp

OURS, THEIRS = bytes.fromhex("02000a000010"), bytes.fromhex("0200000000aa")
IP_A, IP_B = bytes([10, 77, 0, 10]), bytes([10, 77, 0, 1])
WHOLE = bytes(ARP(op=1, hwsrc=THEIRS.hex(":"), psrc="10.77.0.1", pdst="10.77.0.10"))
macs, addresses = st.binary(min_size=6, max_size=6), st.binary(min_size=4, max_size=4)


@pytest.mark.parametrize("operation", [1, 2])
@given(sender=macs, source=addresses, target=macs, wanted=addresses)
@settings(max_examples=30, deadline=None)
def test_both_ways_with_scapy(
    operation: int, sender: bytes, source: bytes, target: bytes, wanted: bytes
) -> None:
    theirs = ARP(
        op=operation,
        hwsrc=sender.hex(":"),
        psrc=".".join(map(str, source)),
        hwdst=target.hex(":"),
        pdst=".".join(map(str, wanted)),
    )
    message = arp.Message(operation, sender, source, target, wanted)
    assert arp.decode(bytes(theirs)) == message
    assert arp.template(*message).tobytes() == bytes(theirs)


@pytest.mark.parametrize("padding", [b"", bytes(18), b"\xff" * 1500])
def test_padding_is_no_part_of_it(padding: bytes) -> None:
    expected = arp.Message(arp.REQUEST, THEIRS, IP_B, arp.UNKNOWN_MAC, IP_A)
    assert arp.decode(WHOLE + padding) == expected


@pytest.mark.parametrize("octets", range(len(WHOLE)))
def test_every_truncation_is_refused(octets: int) -> None:
    assert arp.decode(WHOLE[:octets]) is None


@pytest.mark.parametrize(
    ("field", "value", "good"),
    [
        ("hwtype", 6, True),  # IEEE 802
        ("hwtype", 0, False),
        ("hwtype", 15, False),  # frame relay
        ("ptype", 0x86DD, False),
        ("hwlen", 8, False),
        ("hwlen", 0, False),
        ("plen", 16, False),
        ("op", 0, False),
        ("op", 3, False),  # RARP
        ("op", 8, False),  # InARP
        ("op", 257, False),  # a request in its low octet only
    ],
)
def test_other_hardware_protocols_and_operations(field: str, value: int, good: bool) -> None:
    octets = bytearray(WHOLE)
    at, size = {"hwtype": (0, 2), "ptype": (2, 2), "hwlen": (4, 1), "plen": (5, 1), "op": (6, 2)}[
        field
    ]
    octets[at : at + size] = value.to_bytes(size)
    assert (arp.decode(bytes(octets)) is not None) is good


@given(st.binary(max_size=64))
@settings(max_examples=200, deadline=None)
def test_any_octets_are_a_message_or_none(octets: bytes) -> None:
    message = arp.decode(octets)
    assert message is None or arp.template(*message).tobytes()[6:] == octets[6:28]
