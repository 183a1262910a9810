"""scapy as a second opinion: what it builds we take apart, and what we build it takes apart."""

from __future__ import annotations

from typing import Any

import outer
import pytest
from golden import FRAME, PACKET
from scapy.contrib.erspan import (
    ERSPAN_I,
    ERSPAN_II,
    ERSPAN_III,
    ERSPAN_PlatformSpecific,
)
from scapy.contrib.etherip import EtherIP
from scapy.contrib.geneve import GENEVE, GeneveOptions
from scapy.contrib.mpls import MPLS
from scapy.contrib.nsh import NSH
from scapy.contrib.tzsp import TZSP, TZSPTagEnd, TZSPTagPadding, TZSPTagRXFrameLength
from scapy.layers.inet import IP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import GRE, Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from collector.decap import SYNTHETIC_DESTINATION, SYNTHETIC_SOURCE, decapsulate
from tunnelbridge.batch import OUTBOUND, from_packets
from tunnelbridge.wire import udp
from tunnelbridge.wire.encapsulation import (
    Encapsulation,
    erspan_1,
    erspan_2,
    erspan_3,
    geneve_tunnel,
    gre_ip,
    gre_teb,
    tzsp_tunnel,
    vxlan_tunnel,
)
from tunnelbridge.wire.layer import Kind

PORTS = udp.port_table(udp.PORTS)
BARE = SYNTHETIC_DESTINATION + SYNTHETIC_SOURCE + b"\x08\x00" + PACKET
MAC = Ether(dst="02:00:00:00:00:0a", src="02:00:00:00:00:0b")
INNER = Raw(FRAME)
IP4 = IP(src="192.0.2.1", dst="198.51.100.9")
ADDRESSES6 = {"src": "2001:db8::1", "dst": "2001:db8:9::9"}


def udp_to(port: int) -> Packet:
    return MAC / IP4 / UDP(sport=50000, dport=port)


BUILT: list[tuple[str, Packet, bytes, Kind, int]] = [
    ("gre", MAC / IP4 / GRE(proto=0x6558) / INNER, FRAME, Kind.GRE, -1),
    (
        "gre, all words",
        MAC
        / IP4
        / GRE(
            proto=0x6558, chksum_present=1, key_present=1, seqnum_present=1,
            key=0xABCDEF01, seqence_number=5,
        )
        / INNER,
        FRAME, Kind.GRE, 0xABCDEF01,
    ),
    ("gre, ip", MAC / IP4 / GRE(proto=0x800) / Raw(PACKET), BARE, Kind.GRE_IP, -1),
    ("erspan 1", MAC / IP4 / GRE(proto=0x88BE) / ERSPAN_I() / INNER, FRAME, Kind.ERSPAN1, -1),
    (
        "erspan 2",
        MAC / IP4 / GRE(proto=0x88BE, seqnum_present=1, seqence_number=9)
        / ERSPAN_II(vlan=0x2AA, cos=5, en=3, t=0, session_id=0x155, index=0xABCDE) / INNER,
        FRAME, Kind.ERSPAN2, 0x155,
    ),
    (
        "erspan 3",
        MAC / IP4 / GRE(proto=0x22EB, seqnum_present=1, seqence_number=9)
        / ERSPAN_III(vlan=0x2AA, session_id=0x2AA, timestamp=5, hw=3, d=1) / INNER,
        FRAME, Kind.ERSPAN3, 0x2AA,
    ),
    (
        "erspan 3, platform",
        MAC / IP4 / GRE(proto=0x22EB)
        / ERSPAN_III(session_id=0x155, o=1) / ERSPAN_PlatformSpecific(platf_id=3) / INNER,
        FRAME, Kind.ERSPAN3, 0x155,
    ),
    ("vxlan", udp_to(4789) / VXLAN(vni=0xABCDEF, flags="Instance") / INNER, FRAME, Kind.VXLAN,
     0xABCDEF),
    ("vxlan, policy", udp_to(8472) / VXLAN(vni=5, flags="Instance+G", gpid=0x1234) / INNER, FRAME,
     Kind.VXLAN, 5),
    ("gpe", udp_to(4790) / VXLAN(vni=5, flags="Instance+NextProtocol", NextProtocol=3) / INNER,
     FRAME, Kind.VXLAN_GPE, 5),
    ("geneve", udp_to(6081) / GENEVE(vni=0xABCDEF, proto=0x6558) / INNER, FRAME, Kind.GENEVE,
     0xABCDEF),
    (
        "geneve, options",
        udp_to(6081)
        / GENEVE(
            vni=5, proto=0x800, critical=1,
            options=[
                GeneveOptions(classid=0x102, type=0x80, data=b"1234"),
                GeneveOptions(classid=0x108, type=1, data=b"12345678"),
            ],
        )
        / Raw(PACKET),
        BARE, Kind.GENEVE, 5,
    ),
    ("tzsp", udp_to(37008) / TZSP() / TZSPTagEnd() / INNER, FRAME, Kind.TZSP, -1),
    (
        "tzsp, tags",
        udp_to(37008) / TZSP(type=1) / TZSPTagPadding()
        / TZSPTagRXFrameLength(rx_frame_length=len(FRAME)) / TZSPTagEnd() / INNER,
        FRAME, Kind.TZSP, -1,
    ),
    ("mpls", udp_to(6635) / MPLS(label=7, s=0) / MPLS(label=0xABCDE, s=1) / Raw(PACKET), BARE,
     Kind.MPLS, 0xABCDE),
    ("mpls, frame", MAC / IP4 / GRE(proto=0x8847) / MPLS(label=5, s=1) / INNER, FRAME, Kind.MPLS, 5),
    ("nsh", MAC / IP4 / GRE(proto=0x894F) / NSH(mdtype=1, nextproto=3) / INNER, FRAME, Kind.GRE, -1),
    ("etherip", MAC / IP4 / EtherIP() / INNER, FRAME, Kind.ETHERIP, -1),
    ("gre in udp", udp_to(4754) / GRE(proto=0x6558) / INNER, FRAME, Kind.GRE, -1),
    ("ipip", MAC / IP(src="192.0.2.1", dst="192.0.2.2", proto=4) / Raw(PACKET), BARE, Kind.IPIP, -1),
    (
        "options, tags",
        MAC / Dot1AD(vlan=5) / Dot1Q(vlan=6)
        / IP(dst="192.0.2.2", proto=47, options=[IPOption_NOP()]) / GRE(proto=0x6558) / INNER,
        FRAME, Kind.GRE, -1,
    ),
    (
        "ipv6, every extension header",
        MAC / IPv6(**ADDRESSES6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting()
        / IPv6ExtHdrFragment(offset=0, m=0, id=5) / IPv6ExtHdrDestOpt(nh=47)
        / GRE(proto=0x6558) / INNER,
        FRAME, Kind.GRE, -1,
    ),
    ("ipv6, udp", MAC / IPv6(**ADDRESSES6) / UDP(dport=4789) / VXLAN(vni=5) / INNER, FRAME,
     Kind.VXLAN, 5),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "packet", "frame", "kind", "identifier"), BUILT, ids=[row[0] for row in BUILT]
)
def test_what_scapy_builds(
    name: str, packet: Packet, frame: bytes, kind: Kind, identifier: int
) -> None:
    octets = bytes(packet)
    result = decapsulate(from_packets([octets]), Kind.ETHERNET, PORTS)
    assert result.reason.tolist() == [0]
    assert result.batch.octets(0) == frame
    assert (result.encapsulation[0], result.identifier[0]) == (kind, identifier)
    assert not result.truncated[0]


def test_what_scapy_builds_in_one_batch() -> None:
    result = decapsulate(from_packets([bytes(row[1]) for row in BUILT]), Kind.ETHERNET, PORTS)
    assert [result.batch.octets(i) for i in range(len(BUILT))] == [row[2] for row in BUILT]
    assert result.identifier.tolist() == [row[4] for row in BUILT]


GRE_ALL = {"key": 0xABCDEF01, "seqence_number": 9, "proto": 0x6558}
SENT: list[tuple[str, Encapsulation, type[Packet], dict[str, Any]]] = [
    ("gre", gre_teb(0xABCDEF01, True, True), GRE, GRE_ALL),
    ("gre-ip", gre_ip(5, False, False), GRE, {"key": 5, "proto": 0x800, "seqnum_present": 0}),
    ("erspan1", erspan_1(), GRE, {"proto": 0x88BE, "seqnum_present": 0}),
    ("erspan2", erspan_2(0x155, 0xABCDE), ERSPAN_II,
     {"ver": 1, "vlan": 0x2AA, "cos": 5, "en": 3, "t": 1, "session_id": 0x155, "index": 0xABCDE}),
    ("erspan3", erspan_3(0x2AA, 0x2A, "100us"), ERSPAN_III,
     {"ver": 2, "vlan": 0x2AA, "cos": 5, "bso": 0, "t": 1, "session_id": 0x2AA, "sgt_other": 0,
      "timestamp": 17_000_000_001_234 % 2**32, "p": 1, "ft": 0, "hw": 0x2A, "d": 1, "gra": 0,
      "o": 0}),
    ("vxlan", vxlan_tunnel(4789, 0xABCDEF), VXLAN, {"vni": 0xABCDEF, "flags": 8}),
    ("geneve", geneve_tunnel(6081, 0xABCDEF, True), GENEVE,
     {"vni": 0xABCDEF, "optionlen": 7, "oam": 0, "critical": 0, "proto": 0x6558}),
    ("tzsp", tzsp_tunnel(37008, True), TZSPTagRXFrameLength, {"rx_frame_length": 1514}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tunnel", "layer", "fields"), SENT, ids=[row[0] for row in SENT])
@pytest.mark.parametrize("version", [4, 6])
def test_scapy_reads_what_we_send(
    name: str, tunnel: Encapsulation, layer: type[Packet], fields: dict[str, Any], version: int
) -> None:
    addresses = {4: ("192.0.2.1", "198.51.100.9"), 6: ("2001:db8::1", "2001:db8:9::9")}[version]
    columns = {
        "sequence": 9, "tag": 0x8100_A2AA, "truncated": 1, "direction": OUTBOUND,
        "timestamp": 1_700_000_000_123_456_789, "wire_length": 1514,
    }  # fmt: skip
    octets = outer.frame(outer.tunnelled(tunnel, FRAME, *addresses, **columns))
    packet = Ether(octets)
    if name == "tzsp":  # scapy knows it only where both ports are 37008
        packet[UDP].payload = TZSP(bytes(packet[UDP].payload))
    header = packet[layer]
    assert {key: int(header.getfieldval(key)) for key in fields} == fields
    if name == "erspan2":
        assert packet[GRE].seqence_number == 9
    if tunnel.port is not None:
        carrier = packet[UDP]
        assert 49152 <= carrier.sport <= 65535
        assert carrier.len == len(octets) - 14 - {4: 20, 6: 40}[version]
    assert octets.endswith(FRAME[14:])
