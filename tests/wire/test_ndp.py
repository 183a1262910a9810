"""Neighbour discovery: scapy builds what we read, and reads what we build; RFC 4861 §7.1 is kept."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
    IPv6ExtHdrHopByHop,
    in6_getnsma,
    in6_getnsmac,
)
from scapy.packet import Packet, Raw

from tunnelbridge.wire import ndp

MAC = "02:00:0a:00:00:10"
ASKER, TARGET, GROUP = "fd77::1", "fd77::12:3456", "ff02::1:ff12:3456"


def packed(text: str) -> bytes:
    return IPv6Address(text).packed


def solicitation(src: str = ASKER, dst: str = GROUP, hlim: int = 255, **fields: Any) -> Packet:
    return IPv6(src=src, dst=dst, hlim=hlim) / ICMPv6ND_NS(tgt=TARGET, **fields)


def advertisement(dst: str = ASKER, **fields: Any) -> Packet:
    return IPv6(src=TARGET, dst=dst, hlim=255) / ICMPv6ND_NA(tgt=TARGET, **fields)


SOURCE, DESTINATION = ICMPv6NDOptSrcLLAddr(lladdr=MAC), ICMPv6NDOptDstLLAddr(lladdr=MAC)
NONCE = ICMPv6NDOptUnknown(type=14, len=1, data=b"\x01\x02\x03\x04\x05\x06")
LONG = ICMPv6NDOptUnknown(type=1, len=2, data=bytes(14))  # an address that is not Ethernet's

GOOD = {
    "asked": (solicitation() / SOURCE, 135, 0, MAC),
    "asked again": (solicitation(dst=TARGET), 135, 0, None),
    "duplicate address detection": (solicitation(src="::"), 135, 0, None),
    "with a nonce": (solicitation(src="::") / NONCE, 135, 0, None),
    "behind another option": (solicitation() / NONCE / SOURCE, 135, 0, MAC),
    "the first of two": (
        solicitation() / SOURCE / ICMPv6NDOptSrcLLAddr(lladdr="02:00:00:00:00:99"),
        135,
        0,
        MAC,
    ),
    "long addresses": (solicitation() / LONG, 135, 0, None),
    "the other option": (solicitation() / DESTINATION, 135, 0, None),
    "told": (advertisement(R=0, S=1, O=1) / DESTINATION, 136, 3 << 29, MAC),
    "by a router": (advertisement(R=1, S=0, O=0) / DESTINATION, 136, 1 << 31, MAC),
    "announced": (advertisement(dst="ff02::1", R=0, S=0, O=1) / DESTINATION, 136, 1 << 29, MAC),
    "without an address": (advertisement(R=0, S=1, O=0), 136, 1 << 30, None),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_scapy_builds(name: str) -> None:
    packet, kind, flags, mac = GOOD[name]
    expected = ndp.Message(
        type=kind,
        source=packed(packet[IPv6].src),
        destination=packed(packet[IPv6].dst),
        target=packed(TARGET),
        flags=flags,
        link_address=None if mac is None else bytes.fromhex(mac.replace(":", "")),
    )
    assert ndp.decode(bytes(packet)) == expected
    assert ndp.decode(bytes(packet) + b"padding") == expected


BAD: dict[str, Packet] = {
    "forwarded": solicitation(hlim=254),
    "code": solicitation(code=1),
    "checksum": solicitation(cksum=0x1234),
    "multicast target": IPv6(src=ASKER, dst=GROUP, hlim=255) / ICMPv6ND_NS(tgt="ff02::5"),
    "from nobody, with an address": solicitation(src="::") / SOURCE,
    "from nobody, to one": solicitation(src="::", dst=TARGET),
    "from nobody, to all": solicitation(src="::", dst="ff02::1"),
    "solicited by all": advertisement(dst="ff02::1", S=1),
    "option of no length": solicitation() / Raw(b"\x01\x00" + bytes(6)),
    "option beyond the end": solicitation() / Raw(b"\x01\x02" + bytes(6)),
    "half an option": solicitation() / Raw(b"\x01"),
    "no neighbour discovery": IPv6(src=ASKER, dst=GROUP, hlim=255) / Raw(b"\x80" + bytes(30)),
    "behind an extension header": IPv6(src=ASKER, dst=GROUP, hlim=255)
    / IPv6ExtHdrHopByHop()
    / ICMPv6ND_NS(tgt=TARGET),
    "payload length beyond the end": IPv6(src=ASKER, dst=GROUP, hlim=255, plen=99)
    / ICMPv6ND_NS(tgt=TARGET),
    "payload length within the header": IPv6(src=ASKER, dst=GROUP, hlim=255, plen=20)
    / ICMPv6ND_NS(tgt=TARGET),
    "version": IPv6(version=4, src=ASKER, dst=GROUP, hlim=255) / ICMPv6ND_NS(tgt=TARGET),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_to_be_discarded(name: str) -> None:
    assert ndp.decode(bytes(BAD[name])) is None


@pytest.mark.parametrize("name", ["asked", "told"])
def test_every_truncation_is_refused(name: str) -> None:
    whole = bytes(GOOD[name][0])
    assert ndp.decode(whole) is not None
    for octets in range(len(whole)):
        assert ndp.decode(whole[:octets]) is None


@pytest.mark.parametrize("bit", range(72 * 8))
def test_every_wrong_bit_is_noticed(bit: int) -> None:
    """All but those of traffic class, flow label, and version that the checksum does not cover."""
    whole = bytearray(bytes(GOOD["asked"][0]))
    whole[bit // 8] ^= 0x80 >> bit % 8
    assert (ndp.decode(bytes(whole)) is None) is not (4 <= bit < 32)


@pytest.mark.parametrize("name", [name for name in GOOD if " " not in name or "nobody" in name])
def test_what_we_build_is_what_scapy_builds(name: str) -> None:
    message = ndp.decode(bytes(GOOD[name][0]))
    assert message is not None
    assert ndp.template(message).tobytes() == bytes(GOOD[name][0])


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), st.booleans())
@settings(max_examples=60, deadline=None)
def test_checksums_of_any_addresses(source: bytes, target: bytes, with_mac: bool) -> None:
    message = ndp.Message(
        136, source, target, target, ndp.OVERRIDE, b"\xff" * 6 if with_mac else None
    )
    ours = ndp.template(message).tobytes()
    theirs = IPv6(ours)
    told = theirs[ICMPv6ND_NA].cksum
    del theirs[ICMPv6ND_NA].cksum
    assert IPv6(bytes(theirs))[ICMPv6ND_NA].cksum in (told, told ^ 0xFFFF)  # 0 and FFFF are one
    assert bytes(theirs)[:42] == ours[:42]


@given(st.binary(min_size=16, max_size=16))
@settings(max_examples=50, deadline=None)
def test_solicited_node_addresses(address: bytes) -> None:
    group = ndp.solicited_node(address)
    assert group == in6_getnsma(address)
    assert ndp.multicast_mac(group).hex(":") == in6_getnsmac(group)


@given(st.binary(max_size=120))
@settings(max_examples=200, deadline=None)
def test_any_octets_are_a_message_or_none(octets: bytes) -> None:
    header = bytes(IPv6(src=ASKER, dst=GROUP, hlim=255, nh=58, plen=len(octets)))
    for packet in (octets, header + octets):
        message = ndp.decode(packet)
        assert message is None or message.type in (135, 136)
