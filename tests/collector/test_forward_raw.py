"""Datagrams passed on as they came: to the right back end, unchanged, and counted."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import forwarded
import numpy as np
import outer
import pytest
from forwarded import HERE, SOURCE, Recording, deliver, flow, flow6, vxlan

import lab
from collector.sinks import forward_raw as module
from collector.sinks.back_ends import plan_raw_forwarding
from collector.sinks.carried import read_carried
from collector.sinks.forward_raw import ForwardRawSink
from collector.sinks.forwarding import Heard
from tunnelbridge.batch import zeros
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.wire.layer import Kind

UDP_AND_GRE = Heard(frozenset({4789, 6081}), frozenset({47}))
FAR4, FAR6 = "10.99.0.2", "fd99::2"


# --- what a datagram carried ---


def test_what_each_socket_hands_over_is_carried_alike() -> None:
    frame = flow(1)[0]
    whole = vxlan(frame, source_port=50001)
    udp, payload = whole[20:], whole[28:]
    gre = forwarded.gre_payload(0x6558, frame)
    optioned = b"\x46" + whole[1:2] + (len(whole) + 4).to_bytes(2) + whole[4:20] + bytes(4) + udp
    for packet, first, port, expected in (
        (whole, Kind.IPV4, 0, (17, payload, 50001, 4789)),
        (optioned, Kind.IPV4, 0, (17, payload, 50001, 4789)),
        (udp, Kind.UDP, 0, (17, payload, 50001, 4789)),
        (payload, Kind.VXLAN, 4789, (17, payload, 49152 + 5, 4789)),
        (outer.ipv4(gre, 47, SOURCE, HERE), Kind.IPV4, 0, (47, gre, None, None)),
        (gre, Kind.GRE, 0, (47, gre, None, None)),
    ):
        delivery = deliver([packet] * 3, first, port)
        assert len(delivery) == 3, first
        carried = read_carried(delivery, np.full(3, 5 + 16384))
        assert carried is not None
        got = (carried.protocol[2], carried.payload.octets(2), carried.source[2])
        assert got[:2] == expected[:2], first
        if expected[2] is not None:
            assert (got[2], carried.destination[2]) == expected[2:], first


def test_octets_behind_the_udp_datagram_stay_behind() -> None:
    frame = flow(1)[0]
    udp = vxlan(frame)[20:]
    padded = outer.ipv4(udp + b"trailer", 17, SOURCE, HERE)
    carried = read_carried(deliver([padded]), zeros(1))
    assert carried is not None
    assert carried.payload.octets(0) == udp[8:]


def test_each_frame_has_its_own_datagram_though_others_are_refused() -> None:
    datagrams = [vxlan(flow(number)[0], 50000 + number) for number in range(6)]
    datagrams[2] = vxlan(b"short")
    delivery = deliver(datagrams).select(np.array([4, 0]))
    carried = read_carried(delivery, zeros(2))
    assert carried is not None
    assert carried.source.tolist() == [50005, 50000]
    assert carried.payload.octets(0) == datagrams[5][28:]


def test_a_copy_knows_no_datagrams(monkeypatch: pytest.MonkeyPatch) -> None:
    sink, _ = record(monkeypatch, "10.0.0.1")
    sink.put(deliver([vxlan(flow(1)[0])] * 3).copied())
    assert sink.ledger.dropped == {"no-datagram": 3}
    assert sink.ledger.total() == 3
    sink.close()


# --- which back end ---


def record(
    monkeypatch: pytest.MonkeyPatch, *texts: str
) -> tuple[ForwardRawSink, dict[tuple[str, int], Recording]]:
    """Return a sink, and its sockets by back end and protocol."""
    sockets = {}

    def opened(endpoint: object) -> Recording:
        return sockets.setdefault((endpoint.remote, endpoint.protocol), Recording())

    monkeypatch.setattr(module, "RawTunnelSocket", opened)
    monkeypatch.setattr(module, "effective_capabilities", lambda: {"CAP_NET_RAW"})
    monkeypatch.setattr(Recording, "__enter__", lambda sock: sock, raising=False)
    monkeypatch.setattr(Recording, "__exit__", lambda sock, *_: sock.close(), raising=False)
    asked = plan_raw_forwarding(texts)
    assert asked is not None
    return ForwardRawSink(asked, UDP_AND_GRE), sockets


def mixed(count: int) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """Return datagrams of both directions of flows, by different tunnels, and which belong."""
    pairs = []
    for number in range(count):
        there, back = (flow if number % 2 else flow6)(number)
        pairs.append((vxlan(there, 50000 + number), forwarded.gre(0x6558, back)))
    return [packet for pair in pairs for packet in pair], pairs


def test_both_directions_meet_whatever_tunnel_they_came_by(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    sink, sockets = record(monkeypatch, *names)
    datagrams, pairs = mixed(300)
    order = np.random.default_rng(2).permutation(len(datagrams)).tolist()
    for part in np.array_split(order, 4):
        sink.put(deliver([datagrams[each] for each in part.tolist()]))

    by_udp = {name: {p[8:] for p in sockets[name, 17].packets} for name in names}
    by_gre = {name: set(sockets[name, 47].packets) for name in names}
    for there, back in pairs:
        (name,) = [name for name in names if there[28:] in by_udp[name]]
        assert back[20:] in by_gre[name]
    assert sum(len(sock.packets) for sock in sockets.values()) == len(datagrams)
    assert sink.ledger.delivered == sink.ledger.total() == len(datagrams)
    assert all(len(by_udp[name]) > 50 for name in names)
    sink.close()
    assert all(sock.is_closed for sock in sockets.values())


def test_shares_follow_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    sink, sockets = record(monkeypatch, "10.0.0.1?weight=3", "10.0.0.2", "10.0.0.3?weight=0")
    sink.put(deliver([vxlan(flow(number)[0]) for number in range(2000)]))
    shares = [len(sockets[f"10.0.0.{host}", 17].packets) for host in (1, 2, 3)]
    assert sum(shares) == 2000
    assert shares[2] == 0
    assert 0.70 < shares[0] / 2000 < 0.80
    sink.close()


def test_balancers_agree_whatever_the_order_of_their_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ["10.0.0.1", "10.0.0.2:4790", "[2001:db8::1]:4789"]
    datagrams = [vxlan(flow(number)[0]) for number in range(100)]
    seen = []
    for texts in (names, names[::-1]):
        sink, sockets = record(monkeypatch, *texts)
        sink.put(deliver(datagrams))
        seen.append({key: [p[8:] for p in sock.packets] for key, sock in sockets.items()})
        sink.close()
    assert seen[0] == seen[1]


@pytest.mark.parametrize("count", [0, 1, 1024, 1025])
def test_headers_are_those_that_came_but_for_a_new_port(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    same, sockets = record(monkeypatch, "10.0.0.1")
    other, others = record(monkeypatch, "10.0.0.2:9999?queue=1MB")
    datagrams = [vxlan(flow(number)[0], 50000 + number % 999) for number in range(count)]
    for sink in (same, other):
        sink.put(deliver(datagrams))
        assert sink.ledger.delivered == count
        assert sink.ledger.octets == sum(len(each) - 28 for each in datagrams)
        sink.close()
    assert sockets["10.0.0.1", 17].packets == [each[20:] for each in datagrams]
    for packet, came in zip(others["10.0.0.2", 17].packets, datagrams, strict=True):
        assert packet == came[20:22] + (9999).to_bytes(2) + came[24:]
    assert others["10.0.0.2", 17].octets == 1_000_000


def test_what_the_filter_refuses_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    sink, sockets = record(monkeypatch, "10.0.0.1?filter=tcp")
    sink.put(deliver([vxlan(flow(1)[0]), vxlan(flow6(1)[0])]))
    assert (sink.ledger.delivered, sink.ledger.filtered, sink.ledger.total()) == (1, 1, 2)
    assert len(sockets["10.0.0.1", 17].packets) == 1
    sink.close()


def test_errors_are_dropped_by_cause_and_sockets_follow_the_hosts_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sink, sockets = record(monkeypatch, "10.0.0.1")
    fates = iter(["", "queue-full", "no-route", "einval", "einval"])
    first = sockets["10.0.0.1", 17]
    first.fate = lambda _: next(fates)
    sink.put(deliver([vxlan(flow(number)[0]) for number in range(5)]))
    assert sink.ledger.delivered == 1
    assert sink.ledger.dropped == {"queue-full": 1, "no-route": 1, "einval": 2}
    assert sink.ledger.total() == 5

    sockets.clear()
    sink.tick(0)
    sink.tick(0)
    assert first.is_closed
    sink.put(deliver([vxlan(flow(1)[0])]))
    assert len(sockets["10.0.0.1", 17].packets) == 1
    assert sink.ledger.as_dict()["to"][0]["delivered"] == 2
    sink.close()


# --- mistakes ---


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["10.0.0.1:x"], "10.0.0.1:x"),
        (["10.0.0.1:70000"], "70000"),
        (["10.0.0.1:0"], "expected HOST"),
        ([":4789"], "expected HOST"),
        (["vxlan://10.0.0.1"], "expected HOST"),
        (["2001:db8::1"], "in brackets"),
        (["10.0.0.1?weight=-1"], "weight=-1"),
        (["10.0.0.1?weight=1001"], "0 to 1000"),
        (["10.0.0.1?weight=0"], "no back end has a weight"),
        (["10.0.0.1?vni=1"], "no option vni"),
        (["10.0.0.1?snaplen=64"], "leave snaplen out"),
        (["10.0.0.1", "10.0.0.1?weight=2"], "given twice"),
        (["10.0.0.1?filter=tcp", "10.0.0.2"], "share the frames"),
        (["0.0.0.0"], "nobody's address"),
    ],
)
def test_mistakes_are_told(texts: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told) as raised:
        plan_raw_forwarding(texts)
    assert "\n" not in str(raised.value)


def test_none_is_asked_for() -> None:
    assert plan_raw_forwarding([]) is None


@pytest.mark.parametrize(
    ("text", "heard", "is_loop"),
    [
        ("10.99.0.1", UDP_AND_GRE, True),
        ("10.99.0.1:5000", UDP_AND_GRE, True),  # GRE would come back
        ("10.99.0.1", replace(UDP_AND_GRE, protocols=frozenset()), True),
        ("10.99.0.1:5000", replace(UDP_AND_GRE, protocols=frozenset()), False),
        ("10.99.0.1:6081", replace(UDP_AND_GRE, protocols=frozenset()), True),
        ("[::1]:4789", UDP_AND_GRE, True),
        ("10.99.0.2", UDP_AND_GRE, False),
    ],
)
def test_a_back_end_that_leads_back_is_refused(
    wire: Wire, text: str, heard: Heard, is_loop: bool
) -> None:
    asked = plan_raw_forwarding([text])
    if is_loop:
        with pytest.raises(UsageError, match="leads back to this collector"):
            lab.in_namespace(wire.a, ForwardRawSink, asked, heard)
    else:
        lab.in_namespace(wire.a, ForwardRawSink, asked, heard).close()


# --- over real sockets ---


@dataclass
class Wire:
    """Two namespaces and the cable between them."""

    a: str
    b: str

    def sink(self, *texts: str, heard: Heard = UDP_AND_GRE) -> ForwardRawSink:
        return lab.in_namespace(self.a, ForwardRawSink, plan_raw_forwarding(texts), heard)

    @contextlib.contextmanager
    def listening(self, address: str, kind: int, number: int) -> Iterator[socket.socket]:
        """Listen at the far end, to a UDP port or an IP protocol."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        is_udp = kind == socket.SOCK_DGRAM
        protocol = 0 if is_udp else number
        with lab.in_namespace(self.b, socket.socket, family, kind, protocol) as sock:
            sock.bind((address, number if is_udp else 0))
            sock.settimeout(5)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            yield sock


@pytest.fixture(scope="module")
def wire(root: None) -> Iterator[Wire]:
    with (
        lab.namespace(ipv6=True) as a,
        lab.namespace(ipv6=True) as b,
        lab.veth(a, b, "10.99.0.1/24", "10.99.0.2/24") as (end_a, end_b),
    ):
        for ns, end, address in ((a, end_a, "fd99::1/64"), (b, end_b, "fd99::2/64")):
            lab.run("ip", "-n", ns, "address", "add", address, "dev", end, "nodad")
        for address in (FAR4, FAR6):
            lab.run("ping", "-c1", "-W2", address, ns=a)
        yield Wire(a, b)


def received(sock: socket.socket, count: int) -> list[tuple[bytes, int]]:
    """Return datagrams and the ports they came from, once there are so many."""
    got = []
    for _ in range(count):
        octets, source = sock.recvfrom(65535)
        got.append((octets, source[1]))
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    return got


@pytest.mark.parametrize("far", [FAR4, FAR6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize(("port", "arrives"), [(None, 4789), (5001, 5001)])
def test_udp_arrives_unchanged_with_its_source_port(
    wire: Wire, far: str, port: int | None, arrives: int
) -> None:
    datagrams = [vxlan(flow(number, number)[0], 50000 + number) for number in range(300)]
    datagrams.append(vxlan(flow(9, 3000)[0], 60000))  # leaves in fragments
    host = f"[{far}]" if ":" in far else far
    sink = wire.sink(host if port is None else f"{host}:{port}")
    with wire.listening(far, socket.SOCK_DGRAM, arrives) as sock:
        sink.put(deliver(datagrams))
        got = received(sock, len(datagrams))
    sink.close()
    expected = [(each[28:], int.from_bytes(each[20:22])) for each in datagrams]
    assert Counter(got) == Counter(expected)
    assert sink.ledger.delivered == len(datagrams)


@pytest.mark.parametrize("far", [FAR4, FAR6], ids=["ipv4", "ipv6"])
def test_gre_arrives_as_gre(wire: Wire, far: str) -> None:
    carried = [forwarded.erspan3(flow(number)[0])[20:] for number in range(50)]
    sink = wire.sink(f"[{far}]:5001" if ":" in far else f"{far}:5001")
    with wire.listening(far, socket.SOCK_RAW, 47) as sock:
        sink.put(deliver([outer.ipv4(each, 47, SOURCE, HERE) for each in carried]))
        got = [octets if ":" in far else octets[20:] for octets, _ in received(sock, 50)]
    sink.close()
    assert got == carried
    assert sink.ledger.delivered == 50


def test_without_privilege_udp_goes_by_plain_sockets(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "effective_capabilities", frozenset)
    payloads = [vxlan(each)[28:] for number in range(60) for each in flow(number)]
    sink = wire.sink(FAR4, f"{FAR4}:5001")
    with (
        wire.listening(FAR4, socket.SOCK_DGRAM, 4789) as one,
        wire.listening(FAR4, socket.SOCK_DGRAM, 5001) as two,
    ):
        sink.put(deliver(payloads, Kind.VXLAN, 4789))
        shares = [each["delivered"] for each in sink.ledger.as_dict()["to"]]
        got = [received(sock, share) for sock, share in zip((one, two), shares, strict=True)]
    sink.close()
    assert sum(shares) == 120
    assert all(share > 20 for share in shares)
    assert Counter(octets for each in got for octets, _ in each) == Counter(payloads)
    for each in got:
        flows: dict[bytes, set[int]] = {}
        for octets, source in each:
            ends = sorted((octets[34:38] + octets[42:44], octets[38:42] + octets[44:46]))
            flows.setdefault(b"".join(ends), set()).add(source)
        assert all(len(sources) == 1 for sources in flows.values()), "both directions, one port"
        assert len({source for sources in flows.values() for source in sources}) > 4


def test_nobody_waits_for_a_congested_back_end(root: None) -> None:
    with (
        lab.namespace() as a,
        lab.namespace() as b,
        lab.veth(a, b, "10.99.0.1/24", "10.99.0.2/24") as (end, _),
    ):
        lab.run("ping", "-c1", "-W2", "10.99.0.2", ns=a)
        slow: Sequence[str] = ("rate", "80kbit", "burst", "1600", "limit", "100m")
        lab.run("tc", "qdisc", "add", "dev", end, "root", "tbf", *slow, ns=a)
        sink = Wire(a, b).sink("10.99.0.2?queue=100k")
        delivery = deliver([vxlan(flow(number, 1000)[0]) for number in range(1000)])
        began = time.monotonic()
        for _ in range(20):
            sink.put(delivery)
        took = time.monotonic() - began
        sink.close()
    assert sink.ledger.total() == 20_000
    assert set(sink.ledger.dropped) == {"queue-full"}
    assert took < 1.5, "20 batches would wait 2 s with the sender's patience"
