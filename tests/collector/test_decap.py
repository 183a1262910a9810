"""Decapsulation: the mirrored frames come out bit-true, and every packet ends in one bucket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import outer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.decap import Decapsulated, decapsulate
from tunnelbridge.batch import INBOUND, OUTBOUND, from_packets
from tunnelbridge.wire import udp
from tunnelbridge.wire.encapsulation import (
    Encapsulation,
    erspan_1,
    erspan_2,
    erspan_3,
    geneve_tunnel,
    gre_ip,
    gre_teb,
    juniper_tunnel,
    tzsp_tunnel,
    vxlan_tunnel,
)
from tunnelbridge.wire.layer import Kind
from tunnelbridge.wire.reasons import Reason

PORTS = udp.port_table(udp.PORTS)
SYNTHETIC = bytes.fromhex("020000000002 020000000001")
WEB = outer.frame(outer.ipv4(outer.tcp(bytes(range(200)), 40000, 80), 6, "10.0.0.1", "10.0.0.2"))
WEB6 = outer.frame(outer.ipv6(outer.tcp(b"web", 40000, 80), 6, "2001:db8::1", "2001:db8::2"), 7)
ARP = outer.MACS + bytes.fromhex("0806 0001 0800 0604 0001") + bytes(20) + bytes(18)
LLC = outer.MACS + bytes.fromhex("0003 424203") + bytes(43)
FRAMES = [WEB, WEB6, ARP, LLC]
ADDRESSES = {4: ("192.0.2.1", "198.51.100.9"), 6: ("2001:db8::1", "2001:db8:9::9")}

Make = Callable[[], Encapsulation]
TUNNELS: dict[str, tuple[Make, Kind, int, int]] = {
    # name: (tunnel, encapsulation, identifier, sequence) of clones with sequence number 9
    "gre": (lambda: gre_teb(None, False, False), Kind.GRE, -1, -1),
    "gre-all": (lambda: gre_teb(0xFFFFFFFF, True, True), Kind.GRE, 0xFFFFFFFF, 9),
    "gre-ip": (lambda: gre_ip(5, True, False), Kind.GRE_IP, 5, 9),
    "erspan1": (erspan_1, Kind.ERSPAN1, -1, -1),
    "erspan2": (lambda: erspan_2(1023, 77), Kind.ERSPAN2, 1023, 9),
    "erspan3": (lambda: erspan_3(5, 1, "100us"), Kind.ERSPAN3, 5, 9),
    "erspan3-1588": (lambda: erspan_3(5, 1, "1588"), Kind.ERSPAN3, 5, 9),
    "vxlan": (lambda: vxlan_tunnel(4789, 0xFFFFFF), Kind.VXLAN, 0xFFFFFF, -1),
    "geneve": (lambda: geneve_tunnel(6081, 0, False), Kind.GENEVE, 0, -1),
    "geneve-length": (lambda: geneve_tunnel(6081, 5, True), Kind.GENEVE, 5, -1),
    "tzsp": (lambda: tzsp_tunnel(37008, False), Kind.TZSP, -1, -1),
    "tzsp-length": (lambda: tzsp_tunnel(37008, True), Kind.TZSP, -1, -1),
    "juniper": (lambda: juniper_tunnel(8099, bytes(4), "a:b:c", "a:b:d"), Kind.JUNIPER, -1, -1),
}
COLUMNS = ("encapsulation", "identifier", "sequence", "truncated")


def decap(packets: list[bytes], first: Kind = Kind.ETHERNET, **more: Any) -> Decapsulated:
    """Decapsulate and check that every packet ends in exactly one bucket."""
    batch = from_packets(packets)
    batch.memory.flags.writeable = False
    result = decapsulate(batch, first, PORTS, **more)
    delivered = np.zeros(len(packets), np.int64)
    np.add.at(delivered, result.index, 1)
    assert np.array_equal(delivered + (result.reason != 0), np.ones(len(packets)))
    assert result.reason.max(initial=0) < len(Reason)
    frames = result.batch
    assert len(frames) == len(result.index)
    assert all(len(getattr(result, name)) == len(frames) for name in COLUMNS)
    of = result.index
    assert (frames.start >= batch.start[of]).all()
    assert (frames.start + frames.length <= (batch.start + batch.length)[of]).all()
    assert (frames.total_length >= 14).all()
    assert (frames.wire_length >= frames.total_length).all()
    return result


def one(packet: bytes, first: Kind = Kind.ETHERNET, **more: Any) -> dict[str, Any]:
    """Return all that came of one packet, in octets and numbers."""
    return each(decap([packet], first, **more))[0]


def each(result: Decapsulated) -> list[dict[str, Any]]:
    """Return what came of every packet of a batch."""
    outcome: list[dict[str, Any]] = [{"reason": Reason(code).slug} for code in result.reason]
    for i, number in enumerate(result.index.tolist()):
        outcome[number] = {name: getattr(result, name)[i].item() for name in COLUMNS} | {
            "frame": result.batch.octets(i).hex(),
            "wire_length": int(result.batch.wire_length[i]),
            "direction": int(result.batch.direction[i]),
        }
    return outcome


def mirrored(name: str, frame: bytes, version: int = 4, **columns: int) -> bytes:
    """Return the frame on the underlay that carries a mirrored frame."""
    columns = {"sequence": 9, **columns}
    return outer.frame(
        outer.tunnelled(TUNNELS[name][0](), frame, *ADDRESSES[version], **columns), *[3] * version
    )


def can_carry(name: str, frame: bytes) -> bool:
    return frame is WEB or name != "gre-ip"


CARRIED = [
    pytest.param(name, frame, id=f"{name}-{what}")
    for name in TUNNELS
    for frame, what in zip(FRAMES, ["ipv4", "ipv6", "arp", "llc"], strict=True)
    if can_carry(name, frame)
]


@pytest.mark.parametrize(("name", "frame"), CARRIED)
@pytest.mark.parametrize("version", [4, 6])
def test_frames_come_out_as_they_went_in(name: str, version: int, frame: bytes) -> None:
    _, kind, identifier, sequence = TUNNELS[name]
    expected = frame if name != "gre-ip" else SYNTHETIC + frame[12:]
    tells = name.startswith(("erspan3", "juniper"))
    for direction in (INBOUND, OUTBOUND):
        assert one(mirrored(name, frame, version, direction=direction)) == {
            "frame": expected.hex(),
            "encapsulation": kind,
            "identifier": identifier,
            "sequence": sequence,
            "truncated": False,
            "wire_length": len(expected),
            "direction": direction if tells else INBOUND,
        }


def test_a_mixed_batch_is_as_one_packet_at_a_time() -> None:
    packets = [
        mirrored(name, frame, version)
        for version in (4, 6)
        for frame in FRAMES
        for name in TUNNELS
        if can_carry(name, frame)
    ]
    packets += [packet[:-30] for packet in packets] + [WEB, ARP, b"", b"x"]
    alone = [one(packet) for packet in packets]
    assert each(decap(packets)) == alone
    assert each(decap(packets[::-1])) == alone[::-1]
    assert each(decap(packets + packets[:1])) == alone + alone[:1]
    assert each(decap([])) == []
    assert each(decap([b""])) == [{"reason": "frame-short"}]


def test_times_are_those_of_the_received_packets() -> None:
    batch = from_packets([WEB, mirrored("vxlan", WEB), WEB, mirrored("gre", WEB)])
    batch.timestamp = np.array([10, 11, 12, 13])
    result = decapsulate(batch, Kind.ETHERNET, PORTS)
    assert result.index.tolist() == [1, 3]
    assert result.batch.timestamp.tolist() == [11, 13]


STAMPED = 1_700_000_000_123_456_789
STAMPS: list[tuple[Callable[[], Encapsulation], int]] = [
    (lambda: erspan_3(1, 0, "100us"), 100_000),
    (lambda: erspan_3(1, 0, "100ns"), 100),
    (lambda: erspan_3(1, 0, "1588"), 1),
    (lambda: geneve_tunnel(6081, 1, True), 1),
]


@pytest.mark.parametrize(("tunnel", "unit"), STAMPS)
@pytest.mark.parametrize("late", [0, 3_000_000_000, -3_000_000_000])
def test_times_are_those_of_the_source_if_it_tells(
    tunnel: Callable[[], Encapsulation], unit: int, late: int
) -> None:
    """Among packets that tell no time, and others that came when the clock had wrapped."""
    packet = outer.tunnelled(tunnel(), WEB, *ADDRESSES[4], timestamp=STAMPED)
    stamped = outer.frame(packet)
    batch = from_packets([mirrored("vxlan", WEB), stamped, mirrored("gre", WEB), WEB, stamped])
    arrival = STAMPED + late
    batch.timestamp = arrival + np.arange(5)

    for source_time, time in ((True, STAMPED // unit * unit), (False, None)):
        found = decapsulate(batch, Kind.ETHERNET, PORTS, source_time=source_time)

        assert found.index.tolist() == [0, 1, 2, 4]
        assert found.batch.timestamp.tolist() == [
            arrival, time or arrival + 1, arrival + 2, time or arrival + 4,
        ]  # fmt: skip
        assert batch.timestamp.tolist() == [arrival + n for n in range(5)]


def test_the_outermost_tunnel_tells_the_time() -> None:
    """What a mirrored frame carries is somebody else's clock."""
    inner = mirrored("vxlan", WEB)
    clocks = [mirrored("erspan3", inner, timestamp=STAMPED)]
    nested = mirrored("vxlan", clocks[0])
    batch = from_packets([clocks[0], nested])
    batch.timestamp[:] = STAMPED + 10**9

    found = decapsulate(batch, Kind.ETHERNET, PORTS, source_time=True)

    first, second = found.batch.timestamp.tolist()
    assert abs(first - STAMPED) <= 100_000
    assert second == STAMPED + 10**9


@pytest.mark.parametrize(
    ("packet", "first"),
    [
        (lambda p: p[14:], Kind.IPV4),  # a raw socket
        (lambda p: p[34:], Kind.GRE),
    ],
)
def test_listeners_start_at_any_header(packet: Callable[[bytes], bytes], first: Kind) -> None:
    gre = outer.frame(outer.tunnelled(gre_teb(5, False, False), WEB, *ADDRESSES[4]))
    assert one(packet(gre), first)["frame"] == WEB.hex()


@pytest.mark.parametrize(
    ("port", "name"), [(4789, "vxlan"), (6081, "geneve"), (37008, "tzsp"), (8099, "juniper")]
)
def test_udp_sockets_start_at_the_tunnel_s_header(port: int, name: str) -> None:
    payload = outer.tunnelled(TUNNELS[name][0](), WEB, *ADDRESSES[4])[28:]
    result = one(payload, Kind(PORTS[port]))
    assert (result["frame"], result["encapsulation"]) == (WEB.hex(), TUNNELS[name][1])


@pytest.mark.parametrize(
    ("octets", "kind", "identifier", "frame"),
    [
        # GENEVE, ARP without Ethernet (zeek geneve-arp.pcap)
        ("0000 0806 000005 00" + ARP[14:].hex(), Kind.GENEVE, 5, SYNTHETIC + ARP[12:]),
        ("0000 0800 000005 00" + WEB[14:].hex(), Kind.GENEVE, 5, SYNTHETIC + WEB[12:]),
        ("0000 86dd 000005 00" + WEB6[18:].hex(), Kind.GENEVE, 5, SYNTHETIC + WEB6[16:]),
        # the version's nibble counts, not what was announced
        ("0000 0800 000005 00" + WEB6[18:].hex(), Kind.GENEVE, 5, SYNTHETIC + WEB6[16:]),
        ("0000 86dd 000005 00" + WEB[14:].hex(), Kind.GENEVE, 5, SYNTHETIC + WEB[12:]),
    ],
)
def test_bare_packets_get_a_mac_header(
    octets: str, kind: Kind, identifier: int, frame: bytes
) -> None:
    result = one(bytes.fromhex(octets), Kind.GENEVE)
    assert result["frame"] == frame.hex()
    assert (result["encapsulation"], result["identifier"]) == (kind, identifier)
    assert result["wire_length"] == len(frame)
    assert not result["truncated"]


@pytest.mark.parametrize(
    ("gre", "kind", "identifier", "name"),
    [
        ("0000 8847 0001513f" + WEB[14:].hex(), Kind.MPLS, 21, "ip"),
        ("0000 8847 0001513f" + WEB.hex(), Kind.MPLS, 21, "frame"),
        ("0000 8847 0001513f 00000000" + WEB.hex(), Kind.MPLS, 21, "frame"),
        ("0000 894f 0002 02 03 000001 ff" + WEB.hex(), Kind.GRE, -1, "frame"),
        ("0000 894f 0002 02 05 000001 ff 0001513f" + WEB.hex(), Kind.MPLS, 21, "frame"),
        ("3001 880b 00670005 00000009 ff03 0021" + WEB[14:].hex(), Kind.GRE, 5, "ip"),
        ("2001 6400 00670500" + WEB.hex(), Kind.GRE, 5, "frame"),
        ("0000 883e 05590048" + WEB[14:].hex(), Kind.GRE_IP, -1, "ip"),
        ("0000 8949" + "00" * 22 + WEB.hex(), Kind.GRE, -1, "frame"),
        ("2000 88be 00000009" + WEB.hex(), Kind.ERSPAN1, 9, "frame"),
        ("0000 22eb 20140007 a3595bff 00000006" + WEB.hex(), Kind.ERSPAN3, 7, "frame"),
    ],
)
def test_what_is_received_only(gre: str, kind: Kind, identifier: int, name: str) -> None:
    result = one(bytes.fromhex(gre), Kind.GRE)
    assert result["frame"] == (WEB if name == "frame" else SYNTHETIC + WEB[12:]).hex()
    assert (result["encapsulation"], result["identifier"]) == (kind, identifier)


@pytest.mark.parametrize(
    ("protocol", "octets", "kind"),
    [
        (4, WEB[14:], Kind.IPIP),
        (41, WEB6[18:], Kind.IPIP),
        (143, WEB, Kind.IPIP),
        (97, b"\x30\x00" + WEB, Kind.ETHERIP),
        (137, bytes.fromhex("0001513f") + WEB[14:], Kind.MPLS),
    ],
)
@pytest.mark.parametrize("version", [4, 6])
def test_tunnels_of_ip_itself(protocol: int, octets: bytes, kind: Kind, version: int) -> None:
    result = one(outer.frame(outer.ip(octets, protocol, *ADDRESSES[version])))
    bodies = {WEB.hex(), (SYNTHETIC + WEB[12:]).hex(), (SYNTHETIC + WEB6[16:]).hex()}
    assert result["frame"] in bodies
    assert result["encapsulation"] == kind


@pytest.mark.parametrize("octets", [14, 15, 60, len(WEB)])
def test_a_tag_that_was_taken_out_is_put_back(octets: int) -> None:
    header = bytes.fromhex("1000 88be 00000009 1555 b2aa 00000000")  # En 2, COS 5, VLAN 0x555
    tagged = WEB[:12] + bytes.fromhex("8100 a555") + WEB[12:octets]
    packets = [header + WEB[:octets], header[:10] + b"\xa2\xaa" + header[12:] + WEB[:octets]]
    result = decap(packets, Kind.GRE)
    assert result.batch.octets(0) == tagged
    assert result.batch.octets(1) == WEB[:octets]
    assert result.batch.wire_length[0] == result.batch.wire_length[1] + 4


@pytest.mark.parametrize(
    ("inside", "why"),
    [
        (outer.udp(bytes(8) + WEB, 1, 4789), "VXLAN without a VNI"),
        (outer.udp(bytes.fromhex("08000000 00000500") + WEB[:13], 1, 4789), "a frame too short"),
        (outer.udp(bytes.fromhex("40006558 00000500") + WEB, 1, 6081), "GENEVE of version 1"),
        (outer.udp(b"\x01\x04\x00\x00", 1, 37008), "a TZSP keepalive"),
        (outer.udp(b"hello", 1, 4789), "something else on the port"),
    ],
)
def test_a_mirrored_frame_that_only_looks_like_a_tunnel_is_delivered(
    inside: bytes, why: str
) -> None:
    frame = outer.frame(outer.ipv4(inside, 17, "10.0.0.1", "10.0.0.2"))
    result = one(mirrored("vxlan", frame))
    assert result["frame"] == frame.hex()
    assert (result["encapsulation"], result["identifier"]) == (Kind.VXLAN, 0xFFFFFF)
    assert not result["truncated"]
    assert one(frame) == {"reason": one(frame)["reason"]}, "the first tunnel is strict"


def test_fragments_inside_are_delivered() -> None:
    packet = outer.tunnelled(TUNNELS["vxlan"][0](), WEB, *ADDRESSES[4])
    for fragment in outer.fragments(packet, 104, 5):
        inner = outer.frame(fragment)
        assert one(mirrored("gre", inner))["frame"] == inner.hex()
        assert one(inner) == {"reason": "ip-fragment"}


def nested(levels: int, around: str = "vxlan") -> list[bytes]:
    """Return a frame, and it inside 1, 2, … tunnels."""
    frames = [WEB]
    for _ in range(levels):
        packet = outer.tunnelled(TUNNELS[around][0](), frames[-1], "10.3.3.1", "10.3.3.2")
        frames.append(outer.frame(packet))
    return frames


@pytest.mark.parametrize("around", ["vxlan", "gre", "erspan2", "geneve-length", "juniper"])
@pytest.mark.parametrize("levels", [1, 2, 3, 4])
def test_levels(around: str, levels: int) -> None:
    frames = nested(6, around)
    for depth in range(1, 7):
        result = one(frames[depth], levels=levels)
        assert result["frame"] == frames[max(depth - levels, 0)].hex()
        assert not result["truncated"]
        cut = one(frames[depth][:-5], levels=levels)
        assert cut["truncated"]
        assert cut["wire_length"] == result["wire_length"]


@pytest.mark.parametrize("protocol", [4, 41, 97, 143])
def test_a_tunnel_of_ip_itself_is_one_more_level(protocol: int) -> None:
    inside = {4: WEB[14:], 41: WEB6[18:], 97: b"\x30\x00" + WEB, 143: WEB}[protocol]
    frame = outer.frame(outer.ipv4(inside, protocol, "10.3.3.1", "10.3.3.2"))
    assert one(mirrored("vxlan", frame), levels=1)["frame"] == frame.hex()
    assert one(mirrored("vxlan", frame), levels=2)["frame"] != frame.hex()


def test_ip_in_ip_four_deep_still_tells_its_length() -> None:
    packets = [WEB[14:]]
    for _ in range(5):
        packets.append(outer.ipv4(packets[-1], 4, "10.3.3.1", "10.3.3.2"))
    for depth in range(1, 6):
        whole, cut = one(outer.frame(packets[depth])), one(outer.frame(packets[depth])[:-5])
        expected = SYNTHETIC + b"\x08\x00" + packets[max(depth - 4, 0)]
        assert whole["frame"] == expected.hex()
        assert (whole["truncated"], cut["truncated"]) == (False, True)
        assert cut["wire_length"] == whole["wire_length"] == len(expected)


@pytest.mark.parametrize("name", ["erspan2", "erspan3", "erspan3-1588"])
def test_the_t_bit_tells_of_a_cut(name: str) -> None:
    assert one(mirrored(name, ARP, truncated=1))["truncated"]
    assert not one(mirrored(name, ARP, truncated=0))["truncated"]


@pytest.mark.parametrize("name", ["geneve-length", "tzsp-length"])
def test_the_original_length_tells_of_a_cut(name: str) -> None:
    result = one(mirrored(name, ARP, wire_length=1514))
    assert (result["truncated"], result["wire_length"]) == (True, 1514)
    result = one(mirrored(name, ARP))
    assert (result["truncated"], result["wire_length"]) == (False, len(ARP))


@pytest.mark.parametrize("name", ["geneve-length", "tzsp-length"])
def test_the_original_length_counts_what_replaces_the_first_octets(name: str) -> None:
    tunnel = TUNNELS[name][0]()
    tunnel.suffix = bytes.fromhex("020011223344")
    clones = outer.clones([WEB], wire_length=1514)
    clones.batch = clones.batch.skip(6)
    clones.length = clones.batch.total_length
    packet = tunnel.rows(clones)[0].tobytes()[8:] + clones.batch.octets(0)
    result = one(packet, TUNNELS[name][1])
    assert result["frame"] == (tunnel.suffix + WEB[6:]).hex()
    assert (result["truncated"], result["wire_length"]) == (True, 1514)


@pytest.mark.parametrize("name", [name for name in TUNNELS if not name.endswith("-length")])
@pytest.mark.parametrize("cut", [1, 100, len(WEB) - 14 - 20])
def test_a_frame_s_own_ip_length_tells_of_a_silent_cut(name: str, cut: int) -> None:
    result = one(mirrored(name, WEB[: len(WEB) - cut]))
    assert (result["truncated"], result["wire_length"]) == (True, len(WEB))
    assert len(result["frame"]) // 2 == len(WEB) - cut


@pytest.mark.parametrize("length", [14, 18, 30, 33])
def test_a_frame_cut_inside_its_ip_header_takes_no_length_from_its_neighbours(length: int) -> None:
    packets = [mirrored("vxlan", WEB[:length]), bytes([0xFF]) * 100]
    assert each(decap(packets))[0] == one(packets[0])
    assert one(packets[0])["wire_length"] == length


def test_the_tunnel_around_tells_of_a_cut_where_the_frame_cannot() -> None:
    tunnel = mirrored("vxlan", ARP)
    assert not one(mirrored("gre", tunnel))["truncated"]
    assert one(mirrored("erspan2", tunnel))["identifier"] == 1023  # the outermost names the stream
    assert one(mirrored("erspan2", tunnel))["encapsulation"] == Kind.ERSPAN2
    result = one(mirrored("gre", tunnel[:-10]))
    assert result["frame"] == ARP[:-10].hex()
    assert (result["truncated"], result["wire_length"]) == (True, len(ARP))


def test_padding_is_no_cut() -> None:
    short = outer.frame(outer.ipv4(outer.udp(b"", 1, 2), 17, "10.0.0.1", "10.0.0.2")) + bytes(18)
    result = one(mirrored("vxlan", short) + bytes(8))
    assert (result["frame"], result["truncated"]) == (short.hex(), False)


@pytest.mark.parametrize(
    ("packet", "slug"),
    [
        (WEB, "not-a-tunnel"),
        (ARP, "not-a-tunnel"),
        (LLC, "not-a-tunnel"),
        (outer.frame(outer.ipv4(outer.udp(bytes(50), 1, 53), 17, "10.0.0.1", "10.0.0.2")),
         "not-a-tunnel"),
        (WEB[:13], "frame-short"),
        (b"", "frame-short"),
        (WEB[:14] + b"\x55" + WEB[15:], "ip-version"),
        (mirrored("vxlan", b""), "frame-short"),
        (mirrored("vxlan", WEB[:13]), "frame-short"),
        (mirrored("gre", b""), "frame-short"),
        (mirrored("gre-ip", WEB[:14]), "ip-short"),
        (mirrored("gre-ip", WEB[:14] + b"\x55" * 40), "ip-version"),
        (mirrored("erspan1", WEB[:1]), "frame-short"),
    ],
    ids=range(13),
)  # fmt: skip
def test_rejects(packet: bytes, slug: str) -> None:
    assert one(packet) == {"reason": slug}


def corpus() -> list[bytes]:
    """Return packets of every tunnel, nested ones too."""
    packets = [mirrored(name, WEB, version) for name in TUNNELS for version in (4, 6)]
    return packets + [frame for name in ("vxlan", "erspan2", "gre") for frame in nested(5, name)]


CORPUS = corpus()
row = st.sampled_from(CORPUS)
changed = st.tuples(row, st.integers(0, 120), st.binary(max_size=4), st.integers(0, 400)).map(
    lambda four: (four[0][: four[1]] + four[2] + four[0][four[1] + len(four[2]) :])[: four[3]]
)


@settings(derandomize=True, deadline=None, max_examples=250)
@given(
    packets=st.lists(st.one_of(st.binary(max_size=80), changed), max_size=6),
    first=st.sampled_from([Kind.ETHERNET] * 6 + sorted(set(Kind) - {Kind.NONE})),
)
def test_any_octets_end_in_one_bucket(packets: list[bytes], first: Kind) -> None:
    alone = [one(packet, first) for packet in packets]
    assert each(decap(packets, first)) == alone


def test_every_truncation_is_delivered_as_cut_or_refused() -> None:
    for packet in CORPUS[: len(TUNNELS) * 2]:
        whole = one(packet)
        cuts = [packet[:length] for length in range(len(packet))]
        for outcome in each(decap(cuts)):
            if "reason" not in outcome and len(outcome["frame"]) >= 2 * 34:
                assert outcome["truncated"]
                assert outcome["wire_length"] == whole["wire_length"]
                assert whole["frame"].startswith(outcome["frame"])
