"""The walk inwards: every header once, packets of one kind together, never without end."""

from __future__ import annotations

import test_all
from golden import FRAME, octets
from outer import MACS, frame, ip, ipv4, udp

from tunnelbridge.batch import from_packets
from tunnelbridge.wire import walk as walking
from tunnelbridge.wire.layer import Kind
from tunnelbridge.wire.reasons import Reason, count

ADDRESSES = ("192.0.2.1", "198.51.100.9")
PORT = {kind: port for port, kind in reversed(test_all.udp.PORTS.items())}
GRE_TYPE = {
    Kind.NSH: "894f", Kind.PPP: "880b", Kind.ERSPAN3: "22eb", Kind.MPLS: "8847",
}  # fmt: skip


def walk(
    packets: list[bytes], first: Kind = Kind.ETHERNET, **more: bool | int
) -> list[walking.Step]:
    batch = from_packets(packets)
    end = batch.start + batch.length
    return list(walking.walk(batch.memory, batch.start, end, first, test_all.PORTS, **more))


def kinds(packet: bytes, **more: bool | int) -> list[Kind]:
    return [Kind(step.kind) for step in walk([packet], **more)]


def carried(kind: int, payload: bytes) -> bytes | None:
    """Return a frame that carries a header of this kind; None where GRE's own words say more."""
    if kind in PORT:
        return frame(ipv4(udp(payload, 50000, PORT[Kind(kind)]), 17, *ADDRESSES))
    if kind in GRE_TYPE:
        return frame(ipv4(octets("0000" + GRE_TYPE[Kind(kind)]) + payload, 47, *ADDRESSES))
    if kind == Kind.ETHERIP:
        return frame(ipv4(payload, 97, *ADDRESSES))
    if kind == Kind.ERSPAN2 and payload[:1] and payload[0] >> 4 == 1:
        return frame(ipv4(octets("1000 88be 00000001") + payload, 47, *ADDRESSES))
    return None


def test_every_refused_row_is_refused_inside_its_carrier() -> None:
    seen = set()
    for kind in test_all.DECODERS:
        for row, slug in test_all.refused_rows(kind):
            packet = carried(kind, row)
            if packet is not None:
                last = walk([FRAME, packet, FRAME])[-1]
                assert (last.kind, Reason(last.layer.reason[0]).slug) == (kind, slug)
                seen.add(Kind(kind))
    assert len(seen) == 12  # all but Ethernet, IP, UDP and ICMP, which carry


def test_every_accepted_row_is_walked_through_inside_its_carrier() -> None:
    for kind in test_all.DECODERS:
        for packet in test_all.whole(kind):
            outside = carried(kind, packet)
            if outside is not None:
                steps = walk([outside])
                assert kind in [step.kind for step in steps]
                assert not any(step.layer.reason.any() for step in steps if step.kind == kind)


def test_uniform_batches_stay_whole_and_mixed_ones_part() -> None:
    vxlan = frame(ipv4(udp(octets("08000000 00000500") + FRAME, 50000, 4789), 17, *ADDRESSES))
    steps = walk([vxlan] * 3)
    assert [step.kind for step in steps] == [
        Kind.ETHERNET, Kind.IPV4, Kind.UDP, Kind.VXLAN, Kind.ETHERNET, Kind.IPV4, Kind.UDP,
    ]  # fmt: skip
    assert all(step.index == slice(None) for step in steps)
    gre = frame(ip(octets("0000 6558") + FRAME, 47, "2001:db8::1", "2001:db8::2"))
    steps = walk([gre, vxlan, gre, MACS + b"\x08\x06" + bytes(28)])
    where = {(step.kind, tuple(step.index)) for step in steps[1:]}
    assert {(Kind.IPV4, (1,)), (Kind.IPV6, (0, 2)), (Kind.GRE, (0, 2)), (Kind.VXLAN, (1,))} <= where
    assert walk([]) == []


def test_headers_are_found_where_they_start() -> None:
    packet = frame(ipv4(octets("0000 6558") + FRAME, 47, *ADDRESSES), 5)
    starts = [int(step.start[0]) for step in walk([packet])]
    assert starts == [0, 18, 38, 42, 56, 76]


def test_only_a_searcher_looks_into_fragments_and_quotes() -> None:
    packet = ipv4(octets("0000 6558") + FRAME, 47, *ADDRESSES)
    first = frame(ipv4(packet[20:], 47, *ADDRESSES, 5, 0x2000))
    later = frame(ipv4(packet[20:], 47, *ADDRESSES, 5, 0x2001))
    quote = frame(ipv4(octets("0304 0000 00000578") + packet, 1, *ADDRESSES))
    echo = frame(ipv4(octets("0800 0000 00000578") + packet, 1, *ADDRESSES))
    ends = [Kind.ETHERNET, Kind.IPV4]
    inside = [Kind.GRE, Kind.ETHERNET, Kind.IPV4, Kind.UDP]
    for each in (first, later, quote, echo):
        assert kinds(each) == ends
    assert kinds(first, searching=True) == ends + inside
    assert kinds(later, searching=True) == ends
    assert kinds(quote, searching=True) == [*ends, Kind.ICMP, Kind.IPV4, *inside]
    assert kinds(echo, searching=True) == [*ends, Kind.ICMP]


def test_behind_the_last_level_only_the_payload_s_own_headers_are_read() -> None:
    packet = frame(ipv4(octets("0000 6558") + FRAME, 47, *ADDRESSES))
    for _ in range(2):
        packet = frame(ipv4(octets("0000 6558") + packet, 47, *ADDRESSES))
    level = [Kind.ETHERNET, Kind.IPV4, Kind.GRE]
    own = [Kind.ETHERNET, Kind.IPV4]
    assert kinds(packet, levels=1) == level + own
    assert kinds(packet, levels=2) == level * 2 + own
    assert kinds(packet, levels=3) == level * 3 + own
    assert kinds(packet, levels=4) == [*level * 3, *own, Kind.UDP]


def test_the_walk_ends() -> None:
    packet = FRAME
    for _ in range(200):
        packet = frame(ipv4(octets("0000 6558") + packet, 47, *ADDRESSES))
    assert len(walk([packet])) < walking.MAX_HEADERS
    assert len(walk([packet], levels=1000)) == walking.MAX_HEADERS
    steps = walk([packet] * 2, searching=True)
    assert len(steps) < walking.MAX_HEADERS


def test_reasons_are_counted_by_name() -> None:
    batch = from_packets([b"", FRAME, b"", FRAME[:20]])
    found = walking._decode(
        batch.memory, batch.start, batch.start + batch.length, Kind.ETHERNET, test_all.PORTS
    )
    assert count(found.reason) == {"frame-short": 2}
    assert count(found.reason[:0]) == {}
    assert Reason.VXLAN_NO_VNI.slug == "vxlan-no-vni"
