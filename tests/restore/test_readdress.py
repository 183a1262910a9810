"""New addresses in packets; scapy computes every checksum from scratch and is the judge."""

from __future__ import annotations

import ipaddress
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pcap_files
import pytest
import restore_oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Timestamp, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
    PadN,
    fragment6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Packet, Raw

import lab
from tunnelbridge.batch import Batch, Column, from_packets
from tunnelbridge.restore import heads
from tunnelbridge.restore.readdress import readdress, to_member
from tunnelbridge.wire import ethernet
from tunnelbridge.wire.new_addresses import LEAVE, NewAddresses


def columns(batch: Batch) -> tuple[Column, Column]:
    """Return header length and EtherType of whole frames."""
    frames = [batch.octets(row) for row in range(len(batch))]
    plain = from_packets(frames)
    inside = ethernet.ethertypes(plain.memory, plain.start, plain.start + plain.length)
    return inside.payload - plain.start, inside.ethertype


def words(*addresses: str) -> Any:
    pairs = [divmod(int(ipaddress.ip_address(address)), 2**64) for address in addresses]
    return np.array(pairs, np.uint64).reshape(-1, 2)


def frames_of(batch: Batch) -> list[bytes]:
    return [batch.octets(row) for row in range(len(batch))]


def with_heads(batch: Batch, sizes: list[int]) -> Batch:
    """Move the first octets of each packet into heads, as restoring does."""
    size = np.minimum(np.array(sizes, np.int64), batch.length)
    octets, place = heads.copy(batch.memory, batch.start, size)
    return heads.attach(batch, np.arange(len(batch)), octets, place, size, skip=size)


# --- packets, and what scapy makes of the change ------------------------------------------------

PORT = st.integers(0, 0xFFFF)
PAYLOAD = st.binary(max_size=40)
ADDRESS4 = st.integers(0, 2**32 - 1).map(lambda number: str(ipaddress.IPv4Address(number)))
ADDRESS6 = st.integers(0, 2**128 - 1).map(lambda number: str(ipaddress.IPv6Address(number)))


@st.composite
def transports(draw: st.DrawFn, six: bool) -> Packet:
    kind = draw(st.sampled_from(["tcp", "udp", "none", "sctp", "echo", "udplite", "other"]))
    source, destination = draw(PORT), draw(PORT)
    load = Raw(draw(PAYLOAD))
    if kind == "tcp":
        return TCP(sport=source, dport=destination, seq=draw(st.integers(0, 2**32 - 1))) / load
    if kind == "udp":
        return UDP(sport=source, dport=destination) / load
    if kind == "none":  # a UDP checksum that says there is none
        return UDP(sport=source, dport=destination, chksum=0) / load
    if kind == "sctp":
        return SCTP(sport=source, dport=destination) / SCTPChunkData(data=draw(PAYLOAD))
    if kind == "echo":
        number = draw(PORT)
        return (ICMPv6EchoRequest if six else ICMP)(id=number, seq=1) / load
    return load


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    six = draw(st.booleans())
    frame: Packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    for _ in range(draw(st.integers(0, 2))):
        frame /= Dot1Q(vlan=draw(st.integers(0, 4095)))
    if six:
        frame /= IPv6(src=draw(ADDRESS6), dst=draw(ADDRESS6))
        if draw(st.booleans()):
            padding = PadN(optdata=bytes(draw(st.integers(0, 200))))
            frame /= draw(st.sampled_from([IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt]))(
                options=[padding]
            )
    else:
        options = [IPOption_Timestamp()] if draw(st.booleans()) else []
        frame /= IP(src=draw(ADDRESS4), dst=draw(ADDRESS4), options=options)
    return frame / draw(transports(six))


def changed(frame: bytes, new: dict[str, Any]) -> bytes:
    """Change a frame as scapy would: set the fields, and let it compute all checksums."""
    packet = Ether(frame)
    internet = packet.getlayer(IP) or packet.getlayer(IPv6)
    if internet is None:
        return frame
    if IP in packet:
        del internet.chksum
    for field in ("src", "dst"):
        if field in new:
            setattr(internet, field, new[field])
    for layer in (TCP, UDP, SCTP):
        if layer in packet:
            transport = packet[layer]
            for field in ("sport", "dport"):
                if new.get(field, LEAVE) != LEAVE:
                    setattr(transport, field, new[field])
            if not (layer is UDP and transport.chksum == 0):
                del transport.chksum
    for layer, field in ((ICMP, "chksum"), (ICMPv6EchoRequest, "cksum")):
        if layer in packet:
            if new.get("id", LEAVE) != LEAVE:
                packet[layer].id = new["id"]
            delattr(packet[layer], field)
    return bytes(packet)


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """Return new addresses of both families, ports and identifier; any of them may be missing."""
    leave = st.just(LEAVE)
    everything = {
        "src": st.tuples(ADDRESS4, ADDRESS6),
        "dst": st.tuples(ADDRESS4, ADDRESS6),
        "sport": PORT | leave,
        "dport": PORT | leave,
        "id": PORT | leave,
    }
    wanted = draw(st.sets(st.sampled_from(sorted(everything))))
    return {name: draw(everything[name]) for name in sorted(wanted)}


def new_addresses(rows: list[int], wanted: list[dict[str, Any]]) -> NewAddresses:
    """Put what each row is to get into columns; what only some rows name is left in the others."""

    def number(name: str) -> Column:
        return np.array([one.get(name, LEAVE) for one in wanted], np.int64)

    return NewAddresses(
        rows=np.array(rows, np.int64),
        source=words(*(one["src"] for one in wanted)),
        destination=words(*(one["dst"] for one in wanted)),
        source_port=number("sport"),
        destination_port=number("dport"),
        identifier=number("id"),
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(packets(), changes(), st.booleans(), st.integers(0, 150)), max_size=9))
def test_the_result_is_what_scapy_computes_from_scratch(
    cases: list[tuple[Packet, dict[str, Any], bool, int]],
) -> None:
    frames = [bytes(packet) for packet, *_ in cases]
    rows, wanted, expected = [], [], []
    for number, (frame, (_, change, chosen, _)) in enumerate(zip(frames, cases, strict=True)):
        packet = Ether(frame)
        internet, family = (packet[IPv6], 1) if IPv6 in packet else (packet[IP], 0)
        one = dict(change)
        for field in ("src", "dst"):
            one[field] = one[field][family] if field in one else getattr(internet, field)
        if chosen:
            rows.append(number)
            wanted.append(one)
        expected.append(changed(frame, one) if chosen else frame)
    plain = from_packets(frames)
    memory = plain.memory.copy()
    for batch in (plain, with_heads(plain, [size for *_, size in cases])):
        result = readdress(batch, *columns(batch), new_addresses(rows, wanted))

        assert frames_of(result) == expected
        assert np.array_equal(batch.memory, memory)
        assert result.wire_length.tolist() == batch.wire_length.tolist()


# --- what random packets do not reach -----------------------------------------------------------

MACS = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
NEW4 = {"src": "203.0.113.250", "dst": "10.10.10.10", "sport": 4660, "dport": 22136}
NEW6 = {"src": "2001:db8:ffff::fa", "dst": "fd00::10:10", "sport": 4660, "dport": 22136}


def readdressed(frames: list[bytes], new: dict[str, Any]) -> list[bytes]:
    batch = from_packets(frames)
    everything = new_addresses(list(range(len(frames))), [new] * len(frames))
    return frames_of(readdress(batch, *columns(batch), everything))


@pytest.mark.parametrize("size", [0, 1, 2])
def test_any_number_of_packets_even_none(size: int) -> None:
    frame = bytes(MACS / IP() / TCP())
    assert readdressed([frame] * size, NEW4) == [changed(frame, NEW4)] * size
    batch = from_packets([frame] * size)
    assert frames_of(readdress(batch, *columns(batch), new_addresses([], []))) == [frame] * size


@pytest.mark.parametrize("layer", [UDP(sport=1, dport=2), ICMP(id=7), TCP(sport=1, dport=2)])
def test_ipv4_fragments_are_those_of_the_changed_packet(layer: Packet) -> None:
    whole = (
        IP(src="10.0.0.1", dst="10.0.0.2", id=77) / layer / Raw(random.Random(1).randbytes(3000))
    )
    new = NEW4 if ICMP not in whole else {**NEW4, "id": 4242}
    after = Ether(changed(bytes(MACS / whole), new))[IP]
    before = [bytes(MACS / one) for one in fragment(IP(bytes(whole)), 1000)]

    assert len(before) == 4
    assert readdressed(before, new) == [bytes(MACS / one) for one in fragment(after, 1000)]


def test_ipv6_fragments_are_those_of_the_changed_packet() -> None:
    def fragments(addresses: dict[str, Any]) -> list[bytes]:
        ports = {"sport": addresses["sport"], "dport": addresses["dport"]}
        whole = IPv6(src=addresses["src"], dst=addresses["dst"]) / IPv6ExtHdrFragment(id=9)
        whole /= UDP(**ports) / Raw(random.Random(1).randbytes(3000))
        return [bytes(MACS / one) for one in fragment6(whole, 1280)]

    old = {"src": "2001:db8::1", "dst": "2001:db8::2", "sport": 1, "dport": 2}

    assert len(fragments(old)) == 3
    assert readdressed(fragments(old), NEW6) == fragments(NEW6)


def test_the_crc_of_a_fragmented_sctp_packet_stays() -> None:
    whole = (
        IP(src="10.0.0.1", dst="10.0.0.2")
        / SCTP(sport=1, dport=2)
        / SCTPChunkData(data=bytes(2000))
    )
    first = bytes(MACS / fragment(IP(bytes(whole)), 1000)[0])
    (result,) = readdressed([first], NEW4)

    assert Ether(result)[IP].src == NEW4["src"]
    assert result[34:38] == struct.pack(">HH", NEW4["sport"], NEW4["dport"])
    assert result[42:46] == first[42:46]


@pytest.mark.parametrize(
    "layer", [TCP(), UDP(), ICMP(id=1), SCTP() / SCTPChunkData(data=b"x" * 20)]
)
@pytest.mark.parametrize("six", [False, True])
def test_cut_packets_get_what_the_whole_one_would(layer: Packet, six: bool) -> None:
    if six and ICMP in layer:
        layer = ICMPv6EchoRequest(id=1)
    internet = (
        IPv6(src="2001:db8::1", dst="2001:db8::2") if six else IP(src="10.0.0.1", dst="10.0.0.2")
    )
    new = NEW6 if six else NEW4
    frame = bytes(MACS / internet / layer / Raw(b"payload"))
    whole = changed(frame, new)
    for size in range(14, len(frame) + 1):
        expected = bytearray(whole[:size])
        if not six and 24 < size < 34:  # nobody can verify the checksum of a header that is cut
            expected[24:26] = frame[24 : min(size, 26)]
        batch = from_packets([frame, frame]).cut(size)
        both = new_addresses([0, 1], [new] * 2)
        length, kind = np.array([14, 14]), np.full(2, 0x86DD if six else 0x0800)
        for one in (batch, with_heads(batch, [5, 20])):
            result = readdress(one, length, kind, both)
            assert frames_of(result) == [bytes(expected)] * 2
            assert result.wire_length.tolist() == [len(frame)] * 2


def test_an_identifier_that_is_cut_off_leaves_the_checksum() -> None:
    frame = bytes(MACS / IP() / ICMP(id=1))[:38]
    (result,) = readdressed([frame], {**NEW4, "id": 7})
    assert result[34:] == frame[34:]


@pytest.mark.parametrize("size", [91, 92, 93, 200, 400])
def test_heads_longer_than_the_headers_stay_whole(size: int) -> None:
    """As the segments of a tunnel's packet have them, down to the inner TCP header."""
    payload = Raw(random.Random(2).randbytes(300))
    frames = [bytes(MACS / IP(src="10.0.0.1", dst=f"10.0.0.{row}") / UDP() / payload)
              for row in range(2, 5)]  # fmt: skip
    batch = with_heads(from_packets(frames), [size, 0, size])
    result = readdress(batch, *columns(batch), new_addresses([0, 1, 2], [NEW4] * 3))

    assert frames_of(result) == [changed(frame, NEW4) for frame in frames]


@pytest.mark.parametrize("headers", [1, 3, 7, 9])
def test_long_extension_headers_are_walked(headers: int) -> None:
    internet: Packet = IPv6(src="2001:db8::1", dst="2001:db8::2")
    for _ in range(headers):
        internet /= IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(250)), PadN(optdata=bytes(200))])
    frame = bytes(MACS / internet / UDP(sport=1, dport=2) / Raw(b"payload"))
    short = bytes(MACS / IPv6(src="2001:db8::1", dst="2001:db8::2") / TCP())
    result = readdressed([short, frame, short], NEW6)

    expected = changed(frame, NEW6)
    if headers > 8:  # more than anybody walks: the addresses alone
        expected = frame[:22] + expected[22:54] + frame[54:]
    assert result == [changed(short, NEW6), expected, changed(short, NEW6)]


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("kind", [IPv6ExtHdrRouting, IPv6ExtHdrSegmentRouting])
def test_a_routing_header_moves_the_destination_of_the_checksum(kind: type, left: int) -> None:
    routing = kind(segleft=left, addresses=["2001:db8::9"])
    internet = IPv6(src="2001:db8::1", dst="2001:db8::2") / IPv6ExtHdrHopByHop() / routing
    frame = bytes(MACS / internet / UDP(sport=1, dport=2) / Raw(b"payload"))

    assert readdressed([frame], NEW6) == [changed(frame, NEW6)]


def test_a_udp_checksum_that_becomes_zero_is_all_ones() -> None:
    frame = bytes(MACS / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(sport=1, dport=2))
    with_zero = {**NEW4, "sport": 0}
    missing = Ether(changed(frame, with_zero))[
        UDP
    ].chksum  # what the port adds makes the sum 0xffff
    new = {**NEW4, "sport": missing}
    (result,) = readdressed([frame], new)

    assert result == changed(frame, new)
    assert Ether(result)[UDP].chksum == 0xFFFF


@pytest.mark.parametrize("protocol", [33, 136])
@pytest.mark.parametrize("six", [False, True])
def test_dccp_and_udp_lite(protocol: int, six: bool) -> None:
    """RFC 4340 §9 and RFC 3828 §3.1, of which scapy has neither: one sum over everything."""

    def frame(addresses: dict[str, Any]) -> bytes:
        ports = struct.pack(">HH", addresses["sport"], addresses["dport"])
        body = ports + struct.pack(">HH", 0, 0) + b"a payload of thirty-two octets..."
        ends = b"".join(ipaddress.ip_address(addresses[end]).packed for end in ("src", "dst"))
        total = restore_oracle.checksum(ends + struct.pack(">II", len(body), protocol) + body)
        body = body[:6] + struct.pack(">H", total) + body[8:]
        where = {"src": addresses["src"], "dst": addresses["dst"]}
        internet = IPv6(**where, nh=protocol) if six else IP(**where, proto=protocol)
        return bytes(MACS / internet / Raw(body))

    old, new = ("2001:db8::%d", NEW6) if six else ("10.0.0.%d", NEW4)
    before = frame({"src": old % 1, "dst": old % 2, "sport": 1, "dport": 2})

    assert readdressed([before], new) == [frame(new)]


@pytest.mark.parametrize(
    "frame",
    [
        bytes(MACS / ARP()),
        bytes(MACS),
        bytes(MACS)[:12] + b"\x08\x00",
        bytes(MACS)[:12] + b"\x08\x00" + bytes(40),
        bytes(MACS)[:12] + b"\x86\xdd\x45" + bytes(60),
        bytes(MACS)[:12] + b"\x08\x00\x65" + bytes(60),
    ],
)
def test_what_is_not_ip_stays(frame: bytes) -> None:
    assert readdressed([frame], NEW4) == [frame]


def test_padding_behind_the_packet_is_no_transport_header() -> None:
    frame = bytes(MACS / IP(src="10.0.0.1", dst="10.0.0.2", proto=6, len=22) / Raw(bytes(40)))
    (result,) = readdressed([frame], NEW4)

    assert result[:34] == changed(frame, NEW4)[:34]
    assert (
        result[34:] == frame[34:36].replace(b"\0\0", struct.pack(">H", NEW4["sport"])) + frame[36:]
    )


def test_an_icmp_error_quotes_what_it_quoted() -> None:
    quoted = IP(src="10.0.0.2", dst="10.0.0.1") / UDP(sport=2, dport=1)
    frame = bytes(MACS / IP(src="10.0.0.1", dst="10.0.0.2") / ICMP(type=3, code=3) / quoted)

    (result,) = readdressed([frame], {**NEW4, "id": 7})
    assert result[34:] == frame[34:]
    assert Ether(result)[IP].dst == NEW4["dst"]


def test_a_wrong_checksum_stays_wrong() -> None:
    frame = bytearray(bytes(MACS / IP(src="10.0.0.1", dst="10.0.0.2") / TCP()))
    frame[50] ^= 0x10
    (result,) = readdressed([bytes(frame)], NEW4)
    assert result[50] != changed(bytes(frame), NEW4)[50]


def test_new_addresses_after_new_addresses() -> None:
    frames = [bytes(MACS / IP(src="10.0.0.1", dst="10.0.0.2") / layer / Raw(b"payload"))
              for layer in (TCP(), UDP(), ICMP(id=3))]  # fmt: skip
    batch = from_packets(frames)
    length, kind = columns(batch)
    new = new_addresses([0, 1, 2], [NEW4] * 3)
    result, others = to_member(readdress(batch, length, kind, new), length, kind, "192.0.2.99")

    assert others == 0
    assert frames_of(result) == [changed(frame, {**NEW4, "dst": "192.0.2.99"}) for frame in frames]


@pytest.mark.parametrize(("member", "mine"), [("192.0.2.99", [0, 3]), ("2001:db8::99", [1])])
def test_only_packets_of_a_members_family_go_to_it(member: str, mine: list[int]) -> None:
    frames = [bytes(MACS / IP() / UDP()), bytes(MACS / IPv6() / TCP()), bytes(MACS / ARP()),
              bytes(MACS / Dot1Q(vlan=5) / IP() / TCP())]  # fmt: skip
    batch = from_packets(frames)
    result, others = to_member(batch, *columns(batch), member)

    assert others == 4 - len(mine)
    assert frames_of(result) == [
        changed(frame, {"dst": member}) if row in mine else frame
        for row, frame in enumerate(frames)
    ]


def test_tshark_finds_all_checksums_good(tmp_path: Path) -> None:
    lab.need("tshark")
    frames = [
        bytes(MACS / internet / layer / Raw(b"an odd payload!"))
        for internet in (IP(src="10.0.0.1", dst="10.0.0.2"), Dot1Q(vlan=7) / IP(src="10.0.0.1"))
        for layer in (TCP(dport=9), UDP(dport=9), ICMP(id=1), SCTP(dport=9) / SCTPChunkData())
    ]
    before = from_packets(frames)
    batch = readdress(before, *columns(before), new_addresses(list(range(8)), [NEW4] * 8))
    six = from_packets([
        bytes(MACS / IPv6(src="fd00::1", dst="fd00::2") / layer / Raw(b"an odd payload!"))
        for layer in (TCP(dport=9), UDP(dport=9), ICMPv6EchoRequest(id=1))
    ])  # fmt: skip
    moved, _ = to_member(six, *columns(six), NEW6["dst"])
    results = frames_of(batch) + frames_of(moved)
    path = pcap_files.write(tmp_path / "result.pcap", results)
    checks = [f"{name}.check_checksum:TRUE" for name in ("ip", "tcp", "udp")]
    fields = [f"{name}.checksum.status"
              for name in ("ip", "tcp", "udp", "icmp", "icmpv6", "sctp")]  # fmt: skip
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", "-o", "sctp.checksum:crc-32c"]
    for check in checks:
        command += ["-o", check]
    for field in fields:
        command += ["-e", field]
    statuses = [line.split() for line in lab.run(*command).splitlines()]

    assert not {*results} & {*frames}
    assert statuses == [["1", "1"]] * 8 + [["1"]] * 3
