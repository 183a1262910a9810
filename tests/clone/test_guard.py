"""The loop guard: our own tunnels are refused wherever they show, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import outer
import pytest

from tunnelbridge.batch import from_packets
from tunnelbridge.clone.guard import LoopGuard, Signature
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
from tunnelbridge.wire.flow import read_flows
from tunnelbridge.wire.reasons import Reason

Make = Callable[[], Encapsulation]

TUNNELS: dict[str, tuple[Make, list[Make]]] = {
    "gre": (
        lambda: gre_teb(None, False, False),
        [lambda: gre_teb(7, False, False), lambda: erspan_3(7, 1, "100us"), erspan_1],
    ),
    "gre-key": (
        lambda: gre_teb(7, True, True),
        [lambda: gre_teb(8, True, True), lambda: gre_teb(None, False, False)],
    ),
    "gre-ip": (
        lambda: gre_ip(None, False, False),
        [lambda: gre_ip(7, False, False), lambda: gre_teb(None, False, False)],
    ),
    "gre-ip-key": (lambda: gre_ip(7, True, True), [lambda: gre_ip(8, False, False)]),
    "erspan1": (erspan_1, [lambda: erspan_2(0, 0), lambda: gre_teb(None, False, False)]),
    "erspan2": (
        lambda: erspan_2(7, 3),
        [lambda: erspan_2(8, 3), lambda: erspan_3(7, 3, "100us"), erspan_1],
    ),
    "erspan3": (
        lambda: erspan_3(7, 1, "1588"),
        [lambda: erspan_3(8, 1, "1588"), lambda: erspan_2(7, 0)],
    ),
    "vxlan": (
        lambda: vxlan_tunnel(4789, 7),
        [lambda: vxlan_tunnel(4789, 8), lambda: vxlan_tunnel(8472, 7)],
    ),
    "vxlan-port": (lambda: vxlan_tunnel(9999, 7), [lambda: vxlan_tunnel(9999, 1 << 23)]),
    "geneve": (
        lambda: geneve_tunnel(6081, 7, True),
        [lambda: geneve_tunnel(6081, 8, True), lambda: vxlan_tunnel(4789, 7)],
    ),
    "tzsp": (lambda: tzsp_tunnel(37008, True), [lambda: tzsp_tunnel(37009, True)]),
    "juniper": (
        lambda: juniper_tunnel(8099, None, "a:b:c", "a:b:d"),
        [lambda: juniper_tunnel(8098, None, "a:b:c", "a:b:d")],
    ),
}
ADDRESSES = {4: ("192.0.2.1", "198.51.100.9"), 6: ("2001:db8::1", "2001:db8:9::9")}
OTHER = {4: "198.51.100.8", 6: "2001:db8:9::8"}
ROUTER = {4: "192.0.2.254", 6: "2001:db8::fe"}
WEB = outer.frame(outer.ipv4(outer.tcp(bytes(range(200)), 40000, 80), 6, "10.0.0.1", "10.0.0.2"))

tunnels = pytest.mark.parametrize("name", TUNNELS)
versions = pytest.mark.parametrize("version", [4, 6])


def guard_of(*makes: Make, version: int = 4) -> LoopGuard:
    """Return a guard that knows these tunnels."""
    remote = ADDRESSES[version][1]
    stacks = [make() for make in makes]
    return LoopGuard([Signature(remote, s.kind, s.port, s.identifier) for s in stacks])


def check(guard: LoopGuard, *frames: bytes) -> list[str]:
    """Return the verdict on each frame of a batch: ``own-tunnel`` or ``good``."""
    batch = from_packets(list(frames))
    flows = read_flows(batch.memory, batch.start, batch.start + batch.length)
    return [Reason(code).slug for code in guard.check(batch, flows).reason]


def own(make: Make, version: int, inner: bytes = WEB, **columns: int) -> bytes:
    """Return the IP packet of a clone in a tunnel."""
    return outer.tunnelled(make(), inner, *ADDRESSES[version], **columns)


@tunnels
@versions
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("around", ["vxlan", "gre-ip", "erspan2"])
def test_own_tunnel_at_any_depth(name: str, version: int, depth: int, around: str) -> None:
    make = TUNNELS[name][0]
    packet = own(make, version)
    for _ in range(depth - 1):
        foreign = TUNNELS[around][0]()
        packet = outer.tunnelled(foreign, outer.frame(packet, 5), "10.1.1.1", "10.1.1.2")
        if foreign.bare_ip:  # its MAC header was cut off without the tag
            packet = outer.tunnelled(
                foreign, outer.frame(own(make, version)), "10.1.1.1", "10.1.1.2"
            )
    guard = guard_of(make, version=version)
    assert check(guard, outer.frame(packet)) == ["own-tunnel"]
    assert check(guard, WEB, outer.frame(packet, 100, 200), WEB) == ["good", "own-tunnel", "good"]


@tunnels
@versions
def test_somebody_else_s_tunnels_pass(name: str, version: int) -> None:
    make, others = TUNNELS[name]
    source, _ = ADDRESSES[version]
    frames = [outer.frame(own(other, version)) for other in others]
    frames.append(outer.frame(outer.tunnelled(make(), WEB, source, OTHER[version])))
    frames.append(outer.frame(outer.tunnelled(make(), WEB, ADDRESSES[version][1], source)))
    guard = guard_of(make, version=version)
    for batch in (frames, *([each] for each in frames)):  # alone or among others: the same
        assert check(guard, *batch) == ["good"] * len(batch)
    batch = [outer.frame(own(make, version)), *frames]
    assert check(guard, *batch) == ["own-tunnel"] + ["good"] * len(frames)


def test_all_tunnels_at_once() -> None:
    makes = [make for make, _ in TUNNELS.values()]
    guard = guard_of(*makes)
    frames = [outer.frame(own(make, 4)) for make in makes]
    assert check(guard, *frames) == ["own-tunnel"] * len(frames)
    assert check(guard, *frames, WEB) == ["own-tunnel"] * len(frames) + ["good"]


@tunnels
@versions
@pytest.mark.parametrize("octets", [8, 12, 16, 24, 10_000])
def test_errors_that_quote_a_clone(name: str, version: int, octets: int) -> None:
    make = TUNNELS[name][0]
    header = {4: 20, 6: 40}[version]
    quote = own(make, version)[: header + octets]
    packet = outer.error(quote, ROUTER[version], ADDRESSES[version][0])
    guard = guard_of(make, version=version)
    assert check(guard, outer.frame(packet)) == ["own-tunnel"]
    inside = outer.tunnelled(vxlan_tunnel(4789, 9), outer.frame(packet), "10.1.1.1", "10.1.1.2")
    assert check(guard, outer.frame(inside), WEB) == ["own-tunnel", "good"]


@tunnels
@versions
def test_fragments_of_a_clone(name: str, version: int) -> None:
    make = TUNNELS[name][0]
    first, later = (outer.frame(each) for each in outer.fragments(own(make, version), 104, 0x7777))
    _, other = (outer.frame(each) for each in outer.fragments(own(make, version), 104, 0x7778))
    web = outer.fragments(
        outer.ip(outer.udp(bytes(400), 5000, 53), 17, *ADDRESSES[version]), 104, 0x8888
    )
    plain = [outer.frame(each) for each in web]
    expected = ["own-tunnel", "own-tunnel", "good", "good", "good"]
    guard = guard_of(make, version=version)
    assert check(guard, first, later, other, *plain) == expected
    assert check(guard, later, WEB) == ["own-tunnel", "good"]
    guard = guard_of(make, version=version)
    assert check(guard, later) == ["good"]
    assert check(guard, *plain, later, first) == ["good", "good", "own-tunnel", "own-tunnel"]


@tunnels
@versions
def test_fragments_of_others_with_the_same_identification(name: str, version: int) -> None:
    make = TUNNELS[name][0]
    protocol, (source, remote) = make().ip_protocol, ADDRESSES[version]
    guard = guard_of(make, version=version)
    first, later = (outer.frame(each) for each in outer.fragments(own(make, version), 104, 7))
    assert check(guard, first, later) == ["own-tunnel"] * 2
    others = [(protocol, ROUTER[version], remote), (protocol, source, OTHER[version])]
    others += [(protocol, remote, source)]
    if version == 4:  # IPv6 fragments are told apart by addresses and identification alone
        others += [(6, source, remote), (17 + 47 - protocol, source, remote)]
    packets = [outer.ip(bytes(400), *other) for other in others]
    frames = [outer.frame(outer.fragments(packet, 104, 7)[1]) for packet in packets]
    assert check(guard, *frames) == ["good"] * len(frames)
    assert check(guard, later) == ["own-tunnel"]


@tunnels
@versions
def test_what_else_the_remote_host_does_stays_visible(name: str, version: int) -> None:
    addresses = ADDRESSES[version]
    icmp = {4: 1, 6: 58}[version]
    echo = {4: 8, 6: 128}[version]

    def to(payload: bytes, protocol: int) -> bytes:
        return outer.ip(payload, protocol, *addresses)

    http = to(outer.tcp(b"GET / HTTP/1.1\r\n\r\n", 40000, 80), 6)
    packets = [
        http,
        to(outer.tcp(b"", 40000, 443), 6),
        to(outer.udp(bytes(30), 40000, 53), 17),
        to(outer.udp(bytes(100), 40000, 4790), 17),
        to(bytes([echo]) + bytes(63), icmp),
        to(bytes.fromhex("00000000"), 47),  # a GRE keepalive
        to(bytes.fromhex("00008200") + bytes(60), 47),  # GRE with something else inside
        to(bytes(100), 50),
        outer.error(http[: {4: 28, 6: 48}[version]], ROUTER[version], addresses[0]),
        outer.error(http, ROUTER[version], addresses[0]),
    ]
    frames = [outer.frame(packet) for packet in packets]
    frames.append(outer.MACS + bytes.fromhex("0806") + bytes(46))
    guard = guard_of(TUNNELS[name][0], version=version)
    assert check(guard, *frames) == ["good"] * len(frames)
    assert [check(guard, each) for each in frames] == [["good"]] * len(frames)


def test_nothing_configured_nothing_refused() -> None:
    frames = [outer.frame(own(make, 4)) for make, _ in TUNNELS.values()]
    assert check(LoopGuard([]), *frames) == ["good"] * len(frames)


def test_empty_batch() -> None:
    assert check(guard_of(TUNNELS["vxlan"][0])) == []


def test_remembered_fragments_are_bounded() -> None:
    guard = guard_of(TUNNELS["vxlan"][0])
    packet = own(TUNNELS["vxlan"][0], 4)
    pairs = [outer.fragments(packet, 104, number) for number in range(6000)]
    size = guard._fragments.nbytes
    firsts = [outer.frame(first) for first, _ in pairs]
    assert set(check(guard, *firsts[:5000])) == {"own-tunnel"}
    assert set(check(guard, *firsts[5000:])) == {"own-tunnel"}
    assert guard._fragments.nbytes == size
    assert check(guard, outer.frame(pairs[-1][1])) == ["own-tunnel"]


@tunnels
def test_tunnels_that_come_and_go(name: str) -> None:
    """A reload tells the guard what to look for from now on; what it remembers stays."""
    make = TUNNELS[name][0]
    first, later = (outer.frame(each) for each in outer.fragments(own(make, 4), 104, 7))
    stack = make()
    guard = LoopGuard([])
    assert check(guard, first, later) == ["good"] * 2
    guard.watch_for([Signature(ADDRESSES[4][1], stack.kind, stack.port, stack.identifier)])
    assert check(guard, outer.frame(own(make, 4)), first) == ["own-tunnel"] * 2
    guard.watch_for([])
    assert check(guard, outer.frame(own(make, 4))) == ["good"]
    assert check(guard, later) == ["own-tunnel"]
