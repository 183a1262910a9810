"""Super-packets inside tunnels, judged by scapy (RFC formats) and fed with other people's captures."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from restore_oracle import Packet, Vnet, ones_sum
from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import GRE, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet as Layers
from scapy.packet import Raw
from scapy.utils import PcapReader
from test_restore import batch_of

from tunnelbridge.restore.restore import restore

SIZE = 1000
PAYLOAD = bytes(i * 7 % 251 for i in range(3 * SIZE + 17))

ETHER = Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")
IP4, IP6 = IP(src="10.0.0.1", dst="10.0.0.2", flags="DF"), IPv6(src="fd00::1", dst="fd00::2")
INNER4, INNER6 = IP(src="10.9.0.1", dst="10.9.0.2"), IPv6(src="fd09::1", dst="fd09::2")
WITHOUT, WITH = UDP(sport=50000, dport=4789, chksum=0), UDP(sport=50000, dport=4789)

TUNNELS = {
    "vxlan": ETHER / IP4 / WITHOUT / VXLAN(vni=5, flags=8) / ETHER / INNER4,
    "vxlan, checksum": ETHER / IP4 / WITH / VXLAN(vni=5, flags=8) / ETHER / INNER6,
    "vxlan over IPv6, checksum": ETHER / IP6 / WITH / VXLAN(vni=5, flags=8) / ETHER / INNER4,
    "vxlan on port 9": ETHER / IP4 / UDP(dport=9, chksum=0) / VXLAN(flags=8) / ETHER / INNER4,
    "vxlan with group policy": ETHER / IP4 / WITHOUT / VXLAN(flags=0x88, gpid=7) / ETHER / INNER4,
    "vxlan-gpe": ETHER / IP4 / WITHOUT / VXLAN(flags=0x0C, NextProtocol=1) / INNER4,
    "vxlan-gpe, IPv6": ETHER / IP4 / WITHOUT / VXLAN(flags=0x0C, NextProtocol=2) / INNER6,
    "vxlan, tags": ETHER / Dot1Q(vlan=3) / IP4 / WITHOUT / VXLAN(flags=8) / ETHER
    / Dot1Q(vlan=4) / INNER6,
    "geneve": ETHER / IP4 / WITHOUT / GENEVE(proto=0x6558) / ETHER / INNER4,
    "geneve, options": ETHER / IP4 / WITH
    / GENEVE(proto=0x6558, optionlen=2, options=bytes.fromhex("0132010112345678")) / ETHER / INNER4,
    "geneve, no Ethernet": ETHER / IP6 / WITH / GENEVE(proto=0x0800) / INNER4,
    "bare IP over UDP": ETHER / IP4 / WITHOUT / INNER4,
    "bare IPv6 over UDP": ETHER / IP4 / WITH / INNER6,
    "gre": ETHER / IP4 / GRE() / INNER4,
    "gre, key": ETHER / IP4 / GRE(key_present=1, key=77) / INNER6,
    "gre, checksum and key": ETHER / IP4 / GRE(chksum_present=1, key_present=1, key=77) / INNER4,
    "gretap over IPv6, checksum": ETHER / IP6 / GRE(chksum_present=1, proto=0x6558) / ETHER / INNER6,
    "ipip": ETHER / IP4 / INNER4,
    "6in4": ETHER / IP4 / INNER6,
    "4in6": ETHER / IP6 / INNER4,
    "6in6": ETHER / IP6 / INNER6,
    "vxlan in vxlan": ETHER / IP4 / WITH / VXLAN(flags=8) / ETHER / INNER4 / WITH / VXLAN(flags=8)
    / ETHER / INNER6,
    "four levels": ETHER / IP4 / INNER6 / IP4 / GRE(chksum_present=1) / INNER4,
}  # fmt: skip


def as_segment(layers: Layers, inner: Layers, payload: bytes, number: int) -> bytes:
    """Build one packet with scapy, ids counted up from those of the first."""
    packet = layers / inner / Raw(payload)
    packet = packet.copy()
    layer = packet
    while layer:
        if isinstance(layer, IP):
            layer.id = (layer.id + number) % 65536
        layer = layer.payload
    return bytes(packet)


def tcp(number: int, last: bool) -> TCP:
    flags = "APF" if last else "A"
    return TCP(sport=1000, dport=2000, seq=(2**32 - 1500 + number * SIZE) % 2**32, ack=5,
               flags=flags, options=[("Timestamp", (1, 2))])  # fmt: skip


def udp(number: int, last: bool) -> UDP:
    return UDP(sport=1000, dport=2000)


def super_packet(layers: Layers, inner: Layers, kind: int) -> Packet:
    """Return what the kernel would hold: all payload, stale sums, csum_start at the innermost."""
    frame = bytes(layers / inner / Raw(PAYLOAD))
    at = len(frame) - len(PAYLOAD) - len(inner)
    vnet = Vnet(1, kind, 0, SIZE, at, 16 if isinstance(inner, TCP) else 6)
    return Packet(frame, vnet)


def pieces() -> list[bytes]:
    return [PAYLOAD[k : k + SIZE] for k in range(0, len(PAYLOAD), SIZE)]


@pytest.mark.parametrize("name", TUNNELS)
@pytest.mark.parametrize(
    ("inner", "start_known"),
    [(tcp, True), (tcp, False), (udp, True)],  # without csum_start the first UDP header is meant
)
def test_each_level_is_what_scapy_makes(name: str, inner: object, start_known: bool) -> None:
    layers = TUNNELS[name]
    kind = 5 if inner is udp else 1
    packet = super_packet(layers, inner(0, True), kind)  # type: ignore[operator]
    if not start_known:
        packet.vnet.flags = 2
    result = restore(batch_of([packet, packet]))
    assert result.unsegmented == 0
    expected = [
        as_segment(layers, inner(i, i == len(pieces()) - 1), piece, i)  # type: ignore[operator]
        for i, piece in enumerate(pieces())
    ]
    assert [result.batch.octets(i).hex() for i in range(8)] == [f.hex() for f in expected] * 2


def test_an_outer_udp_checksum_is_never_zero() -> None:
    """A zero would say "no checksum"; the source port is chosen so that the first sum comes to it."""
    layers = TUNNELS["vxlan, checksum"].copy()
    first = as_segment(layers, tcp(0, False), pieces()[0], 0)
    (value,) = struct.unpack_from(">H", first, 14 + 20 + 6)
    port = 50000 + value
    layers[UDP].sport = (port & 0xFFFF) + (port >> 16)
    result = restore(batch_of([super_packet(layers, tcp(0, True), 1)])).batch
    assert result.octets(0)[14 + 20 + 6 :][:2] == b"\xff\xff"
    assert result.octets(0) == as_segment(layers, tcp(0, False), pieces()[0], 0)


def test_all_tunnels_in_one_batch() -> None:
    packets = [super_packet(layers, tcp(0, True), 1) for layers in TUNNELS.values()]
    plain = Packet(bytes(ETHER / IP4 / udp(0, True) / b"plain"))
    mixed = [packet for each in packets for packet in (each, plain)]
    result = restore(batch_of(mixed))
    assert result.unsegmented == 0
    assert len(result.batch) == len(packets) * 5
    alone = [restore(batch_of([packet])).batch for packet in mixed]
    expected = [one.octets(i) for one in alone for i in range(len(one))]
    assert [result.batch.octets(i) for i in range(len(result.batch))] == expected


@pytest.mark.parametrize("shift", [-2, -1, 1, 2, 4])
def test_a_walk_that_misses_csum_start_is_counted(shift: int) -> None:
    packets = [super_packet(layers, tcp(0, True), 1) for layers in TUNNELS.values()]
    for packet in packets:
        packet.vnet.csum_start += shift
    result = restore(batch_of(packets))
    assert result.unsegmented == len(packets)
    assert [result.batch.octets(i) for i in range(len(packets))] == [p.frame for p in packets]


@pytest.mark.parametrize(
    "layers",
    [
        ETHER / IP4 / INNER4 / IP4 / INNER4 / IP4,  # a fifth level
        ETHER / IP4 / GRE(version=1) / INNER4,
        ETHER / IP4 / UDP(dport=9) / Raw(b"\x01\x02\x03\x04") / INNER4,
    ],
)
def test_unknown_tunnels_are_counted_and_passed_on(layers: Layers) -> None:
    packet = super_packet(layers, tcp(0, True), 1)
    result = restore(batch_of([packet]))
    assert result.unsegmented == 1
    assert result.batch.octets(0) == packet.frame


@pytest.mark.parametrize(
    ("file", "end", "kind"),
    [
        ("gso-ipv4-vxlan-ipv4.pcap", 116, 1),
        ("gso-ipv6-geneve-ipv4.pcap", 136, 1),
        ("bigtcp-ipv4-vxlan-ipv6.pcap", 136, 4),
    ],
)
def test_super_packets_of_other_people(captures: Path, file: str, end: int, kind: int) -> None:
    with PcapReader(str(captures / "tcpdump" / file)) as reader:
        frame = bytes(reader.read_packet())
    transport = end - 32  # a TCP header with timestamps
    packet = Packet(frame, Vnet(1, kind, 0, 1398, transport, 16))
    result = restore(batch_of([packet]))
    frames = [result.batch.octets(i) for i in range(len(result.batch))]
    assert result.unsegmented == 0
    assert len(frames) == -(-(len(frame) - end) // 1398)
    assert b"".join(one[end:] for one in frames) == frame[end:]
    network = transport - (40 if kind == 4 else 20)
    for number, one in enumerate(frames):
        inner = one[network:]
        (sequence,) = struct.unpack_from(">I", one, transport + 4)
        (first,) = struct.unpack_from(">I", frame, transport + 4)
        assert sequence == (first + number * 1398) % 2**32
        addresses = inner[8:40] if kind == 4 else inner[12:20]
        pseudo = addresses + struct.pack(">II", len(one) - transport, 6)
        assert ones_sum(pseudo + one[transport:]) == 0xFFFF
        rebuilt = Ether(one)
        for layer in (IP, IPv6):
            if layer in rebuilt:
                length = rebuilt[layer].len if layer is IP else rebuilt[layer].plen + 40
                assert length == len(rebuilt[layer])


def test_other_peoples_packets_with_hostile_columns(captures: Path) -> None:
    random = np.random.default_rng(7)
    for path in sorted((captures / "malformed").glob("*.pcap"))[:60]:
        frames = []
        try:
            with PcapReader(str(path)) as reader:
                frames = [bytes(packet) for packet, _ in zip(reader, range(20), strict=False)]
        except Exception:  # scapy's reader gives up on some of them; not ours to judge
            continue
        packets = []
        for frame in frames:
            start = int(random.integers(0, len(frame) + 20))
            numbers = random.integers(0, 65536, 3)
            kind = int(random.choice([0, 1, 4, 5, 0x81]))
            offset = int(random.choice([6, 16, numbers[2]]))
            vnet = Vnet(int(random.integers(0, 4)), kind, int(numbers[0]), int(numbers[1]),
                        min(start, 65535), offset)  # fmt: skip
            packets.append(Packet(frame[:65000], vnet))
        result = restore(batch_of(packets))
        assert len(result.batch) >= len(packets)
