"""New addresses in packets; scapy computes every checksum from scratch and is the judge."""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Timestamp
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    PadN,
)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.layers.sctp import SCTP, SCTPChunkData
from scapy.packet import Packet, Raw

from tunnelbridge.batch import Batch, Column, from_packets
from tunnelbridge.restore import heads
from tunnelbridge.restore.readdress import readdress
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
