"""Clones leave as they should: judged by a packet socket or raw socket at the far end."""

from __future__ import annotations

import contextlib
import ctypes
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

import lab
from tunnelbridge.batch import Batch, from_packets
from tunnelbridge.errors import UserError
from tunnelbridge.linux import libc, options
from tunnelbridge.linux.endpoint import Endpoint
from tunnelbridge.linux.pushing import Push, Sent
from tunnelbridge.linux.transmit import RawTunnelSocket, UdpTunnelSocket

pytestmark = pytest.mark.usefixtures("root")

GRE = Endpoint(remote="10.99.0.2", protocol=47)
GRE_V6 = Endpoint(remote="fd99::2", protocol=47)
UDP = Endpoint(remote="10.99.0.2", protocol=17)
UDP_V6 = Endpoint(remote="fd99::2", protocol=17)

# The far end has no listeners; its ICMP errors would come back at their own, rate-limited time.
SILENCE = """
table inet silence {
    chain out {
        type filter hook output priority 0;
        meta mark 0 icmp type destination-unreachable drop
        icmpv6 type { destination-unreachable, parameter-problem } drop
    }
}
"""


@dataclass
class Wire:
    """Two namespaces and the cable between them."""

    a: str
    b: str
    end_a: str
    end_b: str

    def open(self, kind: Callable[..., object], *args: object, **kwargs: object) -> object:
        return lab.in_namespace(self.a, kind, *args, **kwargs)


@pytest.fixture(scope="module")
def wire(root: None) -> Iterator[Wire]:
    with (
        lab.namespace(ipv6=True) as a,
        lab.namespace(ipv6=True) as b,
        lab.veth(a, b, "10.99.0.1/24", "10.99.0.2/24") as (end_a, end_b),
    ):
        for ns, end, address in ((a, end_a, "fd99::1/64"), (b, end_b, "fd99::2/64")):
            lab.run("ip", "-n", ns, "address", "add", address, "dev", end, "nodad")
        lab.run("nft", SILENCE, ns=b)
        yield Wire(a, b, end_a, end_b)


class Reader:
    """A plain packet socket: every IP packet of one protocol that arrives at an interface."""

    def __init__(self, ns: str, interface: str, ethertype: int = 0x0800) -> None:
        self.sock = lab.in_namespace(ns, socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self.sock.setsockopt(socket.SOL_SOCKET, options.SO_RCVBUFFORCE, 32 << 20)
        self.sock.bind((interface, ethertype))
        self.at = 9 if ethertype == 0x0800 else 6

    def take(self, count: int, protocols: tuple[int, ...], seconds: float = 5) -> list[bytes]:
        """Return the next ``count`` packets of these protocols."""
        packets: list[bytes] = []
        deadline = time.monotonic() + seconds
        while len(packets) < count:
            self.sock.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                packet = self.sock.recv(1 << 16)
            except TimeoutError:
                raise AssertionError(f"{len(packets)} of {count} packets arrived") from None
            if packet[self.at] in protocols:
                packets.append(packet)
        return packets

    def nothing(self, protocol: int) -> bool:
        self.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                if self.sock.recv(1 << 16)[self.at] == protocol:
                    return False
        return True


@contextlib.contextmanager
def reader(ns: str, interface: str, ethertype: int = 0x0800) -> Iterator[Reader]:
    opened = Reader(ns, interface, ethertype)
    with opened.sock:
        yield opened


def packets(count: int, seed: int = 1, largest: int = 200) -> list[bytes]:
    source = random.Random(seed)
    return [source.randbytes(source.randint(0, largest)) for _ in range(count)]


def header_rows(count: int, width: int = 8) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, width), np.uint8)


def udp_rows(source_ports: list[int], lengths: list[int], port: int = 4789) -> np.ndarray:
    rows = [
        struct.pack("!HHHHII", source, port, 16 + length, 0, 0x08000000, 7 << 8)
        for source, length in zip(source_ports, lengths, strict=True)
    ]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 16)


@pytest.mark.parametrize("count", [0, 1, 7, 1023, 1024, 1025, 2500])
def test_every_clone_arrives_in_order_behind_its_row(wire: Wire, count: int) -> None:
    inner = packets(count)
    rows = header_rows(count)
    endpoint = replace(GRE, ttl=33, dscp=46)
    with wire.open(RawTunnelSocket, endpoint) as sender, reader(wire.b, wire.end_b) as far:
        sent = sender.send(rows, from_packets(inner))
        arrived = far.take(count, (47,))
        assert far.nothing(47)
    assert sent == Sent(count, sum(map(len, inner)))
    for packet, row, octets in zip(arrived, rows, inner, strict=True):
        assert packet[20:] == row.tobytes() + octets
        assert (packet[0], packet[1], packet[8], packet[9]) == (0x45, 46 << 2, 33, 47)
        assert packet[6] & 0x40 == 0, "DF must be clear"
        assert packet[12:20] == socket.inet_aton("10.99.0.1") + socket.inet_aton("10.99.0.2")


def test_the_usual_ttl_is_64(wire: Wire) -> None:
    with wire.open(RawTunnelSocket, GRE) as sender, reader(wire.b, wire.end_b) as far:
        sender.send(header_rows(1), from_packets([b"x"]))
        assert far.take(1, (47,))[0][8] == 64


def test_heads_and_reordered_packets_are_gathered(wire: Wire) -> None:
    whole = packets(1500, seed=3)
    batch = from_packets(whole)
    heads = [bytes([n % 251]) * (n % 5) for n in range(1500)]
    batch.head = np.frombuffer(b"".join(heads), np.uint8)
    batch.head_length = np.array([len(head) for head in heads])
    batch.head_start = np.cumsum(batch.head_length) - batch.head_length
    order = np.random.default_rng(5).permutation(1500)
    rows = header_rows(1500, 4)
    with wire.open(RawTunnelSocket, GRE) as sender, reader(wire.b, wire.end_b) as far:
        sent = sender.send(rows, batch.select(order))
        arrived = far.take(1500, (47,))
        sender.send(rows[:3], from_packets(whole[:3]))  # no heads left over from before
        after = far.take(3, (47,))
    assert sent.octets == sum(map(len, whole)) + sum(map(len, heads))
    for packet, row, n in zip(arrived, rows, order, strict=True):
        assert packet[20:] == row.tobytes() + heads[n] + whole[n]
    assert [p[20:] for p in after] == [
        r.tobytes() + w for r, w in zip(rows[:3], whole[:3], strict=True)
    ]


def test_rows_may_be_part_of_a_larger_matrix(wire: Wire) -> None:
    matrix = header_rows(64, 40)
    inner = packets(10)
    with wire.open(RawTunnelSocket, GRE) as sender, reader(wire.b, wire.end_b) as far:
        sender.send(matrix[:10, :12], from_packets(inner))
        arrived = far.take(10, (47,))
    expected = [r[:12].tobytes() + i for r, i in zip(matrix[:10], inner, strict=True)]
    assert [packet[20:] for packet in arrived] == expected


def test_rows_of_another_shape_are_a_bug(wire: Wire) -> None:
    with wire.open(RawTunnelSocket, GRE) as sender, pytest.raises(ValueError, match="rows"):
        sender.send(header_rows(3), from_packets([b"x"]))


def test_truncated_packets_leave_truncated(wire: Wire) -> None:
    inner = [bytes(range(200)), b"short"]
    with wire.open(RawTunnelSocket, GRE) as sender, reader(wire.b, wire.end_b) as far:
        sent = sender.send(header_rows(2), from_packets(inner).cut(64))
        arrived = far.take(2, (47,))
    assert sent.octets == 69
    assert [packet[28:] for packet in arrived] == [inner[0][:64], b"short"]


@pytest.mark.parametrize(("ethertype", "endpoint"), [(0x0800, GRE), (0x86DD, GRE_V6)])
def test_long_clones_are_fragmented_and_reassembled(
    wire: Wire, ethertype: int, endpoint: Endpoint
) -> None:
    inner = random.Random(9).randbytes(1600)
    family = socket.AF_INET if ethertype == 0x0800 else socket.AF_INET6
    with (
        wire.open(RawTunnelSocket, endpoint) as sender,
        reader(wire.b, wire.end_b, ethertype) as far,
        lab.in_namespace(wire.b, socket.socket, family, socket.SOCK_RAW, 47) as whole,
    ):
        rows = header_rows(1)
        sent = sender.send(rows, from_packets([inner]))
        fragments = far.take(2, (47, 44))
        whole.settimeout(5)
        reassembled = whole.recv(1 << 16)
    assert sent == Sent(1, 1600)
    if family == socket.AF_INET:
        assert [packet[6] >> 5 for packet in fragments] == [1, 0]  # more fragments; never DF
        reassembled = reassembled[20:]
    else:
        assert [packet[6] for packet in fragments] == [44, 44]
    assert max(map(len, fragments)) <= 1500
    assert reassembled == rows.tobytes() + inner


@pytest.mark.parametrize("endpoint", [GRE, replace(GRE, ttl=7, dscp=46, local="10.99.0.1")])
def test_our_ipv4_headers_are_those_the_kernel_makes(wire: Wire, endpoint: Endpoint) -> None:
    inner, rows = packets(20, seed=4), header_rows(20)
    with wire.open(RawTunnelSocket, endpoint) as sender, reader(wire.b, wire.end_b) as far:
        sender.send(rows, from_packets(inner))
        ours = far.take(20, (47,))
        sender._room = lambda *_: -1
        sender.send(rows, from_packets(inner))
        kernels = far.take(20, (47,))
    for one, other in zip(ours, kernels, strict=True):
        assert one[:4] + one[6:10] + one[12:] == other[:4] + other[6:10] + other[12:]
        assert internet_checksum(one[:20]) == 0
    assert len({packet[4:6] for packet in ours}) == 20, "fragments would be mixed up"


def test_a_link_that_becomes_narrower_costs_no_clone(wire: Wire) -> None:
    inner, rows = [b"s" * 100, b"l" * 1400], header_rows(2)
    with wire.open(RawTunnelSocket, GRE) as sender, reader(wire.b, wire.end_b) as far:
        assert sender.send(rows, from_packets(inner)) == Sent(2, 1500)
        assert [len(packet) for packet in far.take(2, (47,))] == [128, 1428]
        lab.run("ip", "-n", wire.a, "link", "set", wire.end_a, "mtu", "1300")
        try:
            assert sender.send(rows, from_packets(inner)) == Sent(2, 1500)
            assert max(len(packet) for packet in far.take(3, (47,))) <= 1300
        finally:
            lab.run("ip", "-n", wire.a, "link", "set", wire.end_a, "mtu", "1500")


def test_a_route_over_a_narrower_link_costs_one_batch(wire: Wire) -> None:
    route = ("ip", "-n", wire.a, "route", "replace", "10.97.0.0/16", "dev")
    with lab.veth(wire.a, wire.b, mtu=1300) as (narrow, _):
        lab.run(*route, wire.end_a)
        with wire.open(RawTunnelSocket, replace(GRE, remote="10.97.0.9")) as sender:
            assert sender.send(header_rows(1), from_packets([b"l" * 1400])).packets == 1
            lab.run(*route, narrow)
            lost = sender.send(header_rows(1), from_packets([b"l" * 1400]))
            assert lost == Sent(0, 0, {"message-too-long": 1})
            assert sender.send(header_rows(1), from_packets([b"l" * 1400])) == Sent(1, 1400)


def internet_checksum(octets: bytes) -> int:
    total = sum(struct.unpack(f"!{(len(octets) + 1) // 2}H", octets + b"\0" * (len(octets) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def test_udp_over_ipv6_gets_a_valid_checksum(wire: Wire) -> None:
    inner = [*packets(40, seed=8), bytes(1600)]
    rows = udp_rows([50000 + n for n in range(41)], [len(octets) for octets in inner])
    with (
        wire.open(RawTunnelSocket, UDP_V6) as sender,
        lab.in_namespace(
            wire.b, socket.socket, socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_UDP
        ) as far,
    ):
        far.settimeout(5)
        sent = sender.send(rows, from_packets(inner))
        arrived = [far.recv(1 << 16) for _ in inner]
    assert sent.packets == 41
    a, b = (socket.inet_pton(socket.AF_INET6, f"fd99::{n}") for n in (1, 2))
    for datagram, row, octets in zip(arrived, rows, inner, strict=True):
        pseudo = a + b + struct.pack("!II", len(datagram), 17)
        assert datagram[6:8] != b"\0\0"
        assert internet_checksum(pseudo + datagram) == 0
        assert datagram[:6] + datagram[8:] == row[:6].tobytes() + row[8:].tobytes() + octets


def test_udp_over_ipv4_keeps_the_rows_checksum_zero(wire: Wire) -> None:
    rows = udp_rows([51515], [3])
    with wire.open(RawTunnelSocket, UDP) as sender, reader(wire.b, wire.end_b) as far:
        sender.send(rows, from_packets([b"abc"]))
        assert far.take(1, (17,))[0][20:] == rows.tobytes() + b"abc"


def test_a_sending_socket_receives_nothing(wire: Wire) -> None:
    with (
        wire.open(RawTunnelSocket, GRE) as sender,
        lab.in_namespace(wire.a, socket.socket, socket.AF_INET, socket.SOCK_RAW, 47) as witness,
        lab.in_namespace(wire.b, socket.socket, socket.AF_INET, socket.SOCK_RAW, 47) as peer,
    ):
        witness.settimeout(5)
        for _ in range(20):
            peer.sendto(b"\0\0\x65\x58back", ("10.99.0.1", 0))
            witness.recv(100)  # so it has passed the sender's socket, too
        with pytest.raises(BlockingIOError):
            sender._sockets[0].recv(100, socket.MSG_DONTWAIT)


@pytest.mark.parametrize("kind", ["raw", "udp"])
def test_every_packet_carries_the_mark(wire: Wire, kind: str) -> None:
    sender = (
        wire.open(RawTunnelSocket, UDP) if kind == "raw" else wire.open(UdpTunnelSocket, UDP, 9)
    )
    only_marked = np.array(
        [(0x20, 0, 0, 0xFFFFF000 + 20), (0x15, 0, 1, libc.TUNNEL_MARK), (6, 0, 0, 65535), (6, 0, 0, 0)],
        libc.BPF_INSTRUCTION,
    )  # fmt: skip
    with (
        sender,
        lab.in_namespace(wire.a, socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0) as tap,
    ):
        libc.attach_filter(tap.fileno(), only_marked)
        tap.bind((wire.end_a, 0x0003))
        tap.settimeout(5)
        inner = [b"x" * 20] * 31 + [b"y" * 1600]  # the last one as two fragments
        sender.send(
            udp_rows(list(range(50000, 50032)), [len(i) for i in inner]), from_packets(inner)
        )
        assert sender.marked
        for _ in range(33):
            tap.recv(2000)


def without_capabilities(function: Callable[[], object]) -> object:
    """Call ``function`` in a thread that has given up every capability."""
    result: list[object] = []

    def work() -> None:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
        assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0
        try:
            result.append(function())
        except UserError as error:
            result.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return result[0]


def test_without_privilege_udp_sends_unmarked_and_raw_says_why(wire: Wire) -> None:
    refused = wire.open(without_capabilities, lambda: RawTunnelSocket(GRE))
    assert isinstance(refused, UserError)
    assert "CAP_NET_RAW" in str(refused)
    sender = wire.open(without_capabilities, lambda: UdpTunnelSocket(UDP, 4789))
    with sender, reader(wire.b, wire.end_b) as far:
        assert not sender.marked
        assert sender.send(udp_rows([50000], [2]), from_packets([b"ok"])).packets == 1
        assert far.take(1, (17,))[0].endswith(b"ok")


@pytest.mark.parametrize(("ethertype", "endpoint"), [(0x0800, UDP), (0x86DD, UDP_V6)])
def test_unprivileged_udp_keeps_flows_apart_and_in_order(
    wire: Wire, ethertype: int, endpoint: Endpoint
) -> None:
    count = 2100
    ports = np.random.default_rng(2).integers(49152, 65536, count).tolist()
    inner = [n.to_bytes(4, "big") * (1 + n % 9) for n in range(count)]
    rows = udp_rows(ports, [len(octets) for octets in inner])
    with (
        wire.open(UdpTunnelSocket, endpoint, 4789) as sender,
        reader(wire.b, wire.end_b, ethertype) as far,
    ):
        own = sender.source_ports
        sent = sender.send(rows, from_packets(inner))
        arrived = far.take(count, (17,))
        assert sender.send(rows[:0], from_packets([])) == Sent()
    start = 20 if ethertype == 0x0800 else 40
    assert sent == Sent(count, sum(map(len, inner)))
    assert len(set(own)) == 16
    assert min(own) >= 49152
    expected: dict[int, list[bytes]] = {port: [] for port in own}
    for port, row, octets in zip(ports, rows, inner, strict=True):
        expected[own[port % 16]].append(row[8:].tobytes() + octets)
    seen: dict[int, list[bytes]] = {port: [] for port in own}
    for packet in arrived:
        source, target = struct.unpack_from("!HH", packet, start)
        assert target == 4789
        seen[source].append(packet[start + 8 :])
    assert seen == expected


@pytest.mark.parametrize("remote", ["127.0.0.1", "::1"])
def test_a_closed_port_does_not_stop_the_sender(wire: Wire, remote: str) -> None:
    def no_ports() -> int:
        name = "Udp6NoPorts" if ":" in remote else "Udp: "
        lines = lab.run("cat", "/proc/net/snmp", "/proc/net/snmp6", ns=wire.a).splitlines()
        found = [line for line in lines if line.startswith(name)][-1]
        return int(found.split()[2 if ":" not in remote else 1])

    before = no_ports()
    rows = udp_rows([50000 + n % 7 for n in range(3000)], [5] * 3000)
    with wire.open(UdpTunnelSocket, Endpoint(remote, 17), 4789) as sender:
        sent = sender.send(rows, from_packets([b"hello"] * 3000))
    assert (sent.packets, sent.errors) == (3000, {})
    assert no_ports() - before == 3000  # each one really left, none twice
    assert sent.unreachable > 100


def test_icmp_errors_for_a_raw_socket_are_counted_though_they_fail_no_send(wire: Wire) -> None:
    rows = udp_rows([50000] * 50, [1] * 50)  # nobody listens on 4789
    with wire.open(RawTunnelSocket, Endpoint("127.0.0.1", 17)) as sender:
        sent = sender.send(rows, from_packets([b"x"] * 50))
    assert (sent.packets, sent.errors) == (50, {})
    assert sent.unreachable == 50


def test_an_error_for_an_earlier_packet_costs_no_later_one(wire: Wire) -> None:
    with wire.open(UdpTunnelSocket, Endpoint("127.0.0.1", 17), 4789, 1) as sender:
        sender._sockets[0].send(b"x")  # its ICMP error waits for the next send
        sent = sender.send(udp_rows([50000], [1]), from_packets([b"x"]))
    assert (sent.packets, sent.errors, sent.unreachable) == (1, {}, 2)


def test_a_learned_path_mtu_is_seen_and_is_no_unreachable_remote(wire: Wire) -> None:
    def answer(code: int, mtu: int, packet: bytes) -> None:
        icmp = struct.pack("!BBHHH", 3, code, 0, 0, mtu) + packet[:28]
        checksum = struct.pack("!H", internet_checksum(icmp))
        peer.sendto(icmp[:2] + checksum + icmp[4:], ("10.99.0.1", 0))

    with (
        wire.open(RawTunnelSocket, GRE) as sender,
        reader(wire.b, wire.end_b) as far,
        lab.in_namespace(
            wire.b, socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP
        ) as peer,
    ):
        peer.setsockopt(socket.SOL_SOCKET, libc.SO_MARK, 1)
        sender.send(header_rows(1), large(1))
        packet = far.take(1, (47,))[0]
        answer(4, 1300, packet)
        lab.until(lambda: lab.in_namespace(wire.a, sender.path_mtu) == 1300, what="learning")
        sent = sender.send(header_rows(2), from_packets([b"s", b"l" * 1400]))
        assert sent == Sent(2, 1401, unreachable=0)
        answer(1, 0, packet)
        lab.until(lambda: sender.send(header_rows(1), from_packets([b"s"])).unreachable)
    lab.run("ip", "-n", wire.a, "route", "flush", "cache")


def test_losing_the_route_fails_the_rest_of_the_batch(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    sendmmsg = libc.sendmmsg
    monkeypatch.setattr(libc, "sendmmsg", lambda *a: calls.append(a) or sendmmsg(*a))
    lab.run("ip", "-n", wire.a, "route", "add", "10.98.0.0/16", "via", "10.99.0.2")
    with wire.open(RawTunnelSocket, replace(GRE, remote="10.98.0.9")) as sender:
        lab.run("ip", "-n", wire.a, "route", "del", "10.98.0.0/16")
        sent = sender.send(header_rows(1500), from_packets([b"x"] * 1500))
        assert sent == Sent(0, 0, {"no-route": 1500})
        assert len(calls) == 2, "every further packet was tried in vain"
        lab.run("ip", "-n", wire.a, "route", "add", "10.98.0.0/16", "via", "10.99.0.2")
        assert sender.send(header_rows(5), from_packets([b"x"] * 5)).packets == 5
        lab.run("ip", "-n", wire.a, "route", "replace", "unreachable", "10.98.0.0/16")
        sent = sender.send(header_rows(5), from_packets([b"x"] * 5))
        assert sent == Sent(0, 0, {"host-unreachable": 5})
    lab.run("ip", "-n", wire.a, "route", "del", "10.98.0.0/16")


def test_a_firewall_that_refuses_is_counted_per_packet(wire: Wire) -> None:
    rules = (
        "add table ip tb; add chain ip tb out { type filter hook output priority 0; };"
        "add rule ip tb out ip protocol 47 meta length 100-200 drop"
    )
    lab.run("nft", rules, ns=wire.a)
    try:
        with wire.open(RawTunnelSocket, GRE) as sender, reader(wire.b, wire.end_b) as far:
            inner = [b"a" * 10, b"b" * 100, b"c" * 10, b"d" * 100]
            sent = sender.send(header_rows(4), from_packets(inner))
            arrived = far.take(2, (47,))
    finally:
        lab.run("nft", "delete table ip tb", ns=wire.a)
    assert sent == Sent(2, 20, {"not-permitted": 2})
    assert [packet[-1:] for packet in arrived] == [b"a", b"c"]


@contextlib.contextmanager
def slow_queue(wire: Wire, limit: str, rate: str = "80kbit") -> Iterator[None]:
    lab.run("tc", "qdisc", "add", "dev", wire.end_a, "root", "tbf", "rate", rate,
            "burst", "3000", "limit", limit, ns=wire.a)  # fmt: skip
    try:
        yield
    finally:
        lab.run("tc", "qdisc", "del", "dev", wire.end_a, "root", ns=wire.a)


def large(count: int) -> Batch:
    return from_packets([b"z" * 1400] * count)


@pytest.mark.parametrize("endpoint", [GRE, GRE_V6, UDP])
def test_a_full_queue_is_waited_for_only_shortly(wire: Wire, endpoint: Endpoint) -> None:
    kind = RawTunnelSocket if endpoint.protocol == 47 else lambda e: UdpTunnelSocket(e, 4789, 1)
    with wire.open(kind, endpoint) as sender, slow_queue(wire, "100000000"):
        began = time.monotonic()
        sent = sender.send(header_rows(9000), large(9000))
        elapsed = time.monotonic() - began
    assert set(sent.errors) == {"queue-full"}
    assert sent.packets > 3000  # the large send buffer was granted
    assert sent.packets + sent.errors["queue-full"] == 9000
    assert 0.1 <= elapsed < 1


def test_the_patience_is_for_the_whole_batch(wire: Wire) -> None:
    """A queue that makes a little room again and again must not hold us for ever."""
    with (
        wire.open(UdpTunnelSocket, UDP, 4789, 1) as sender,
        slow_queue(wire, "100000000", rate="8mbit"),  # 1000 packets would take 1.4 s
    ):
        sender._sockets[0].setsockopt(socket.SOL_SOCKET, options.SO_SNDBUFFORCE, 50_000)
        sent = sender.send(udp_rows([50000] * 1000, [1400] * 1000), large(1000))
    assert 50 < sent.packets < 500
    assert sent.errors == {"queue-full": 1000 - sent.packets}


@pytest.mark.parametrize("endpoint", [GRE, GRE_V6, UDP])
def test_a_dropping_queue_comes_back_as_no_buffers(wire: Wire, endpoint: Endpoint) -> None:
    kind = RawTunnelSocket if endpoint.protocol == 47 else lambda e: UdpTunnelSocket(e, 4789, 1)
    with wire.open(kind, endpoint) as sender, slow_queue(wire, "20000"):
        sent = sender.send(header_rows(300), large(300))
    assert set(sent.errors) == {"no-buffers"}
    assert 5 < sent.packets < 50
    assert sent.packets + sent.errors["no-buffers"] == 300


def test_path_mtu_follows_the_route(wire: Wire) -> None:
    with wire.open(RawTunnelSocket, GRE) as v4, wire.open(UdpTunnelSocket, UDP_V6, 4789) as v6:
        ask = lambda sender: lab.in_namespace(wire.a, sender.path_mtu)  # noqa: E731
        assert (ask(v4), ask(v6)) == (1500, 1500)
        lab.run("ip", "-n", wire.a, "route", "add", "10.99.0.2", "dev", wire.end_a, "mtu", "1400")
        lab.run("ip", "-n", wire.a, "route", "add", "fd99::2", "dev", wire.end_a, "mtu", "1380")
        assert (ask(v4), ask(v6)) == (1400, 1380)
        lab.run("ip", "-n", wire.a, "route", "del", "10.99.0.2")
        lab.run("ip", "-n", wire.a, "route", "del", "fd99::2", "dev", wire.end_a, "metric", "1024")
        assert (ask(v4), ask(v6)) == (1500, 1500)


@pytest.mark.parametrize("kind", [RawTunnelSocket, lambda e: UdpTunnelSocket(e, 4789)])
@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        (replace(GRE, remote="198.51.100.7"), "no route to 198.51.100.7"),
        (replace(GRE, remote="2001:db8::7"), "no route to 2001:db8::7"),
        (replace(GRE, local="10.99.0.77"), "10.99.0.77 is not an address of this host"),
        (replace(GRE, local="fd99::1"), "not of the same address family"),
        (replace(GRE, remote="pool.example"), "'pool.example' is not an IP address"),
    ],
)
def test_users_mistakes_are_one_clear_line(
    wire: Wire, kind: Callable[[Endpoint], object], endpoint: Endpoint, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        wire.open(kind, endpoint)
    assert "\n" not in str(caught.value)


def test_the_local_address_is_the_outer_source(wire: Wire) -> None:
    lab.run("ip", "-n", wire.a, "address", "add", "10.99.0.50/32", "dev", wire.end_a)
    with (
        wire.open(RawTunnelSocket, replace(GRE, local="10.99.0.50")) as raw,
        wire.open(UdpTunnelSocket, replace(UDP, local="10.99.0.50"), 4789) as udp,
        reader(wire.b, wire.end_b) as far,
    ):
        raw.send(header_rows(1), from_packets([b"x"]))
        udp.send(udp_rows([50000], [1]), from_packets([b"x"]))
        assert {p[12:16] for p in far.take(2, (47, 17))} == {socket.inet_aton("10.99.0.50")}


def test_waiting_errors_do_not_make_the_wait_spin(wire: Wire) -> None:
    """An ICMP error in the queue ends every poll at once unless it is taken out."""
    with wire.open(UdpTunnelSocket, Endpoint("127.0.0.1", 17), 4789, 1) as sender:
        sock = sender._sockets[0]
        sock.send(b"x")  # the error comes back at once on loopback
        poller = select.poll()
        poller.register(sock, select.POLLOUT)
        assert poller.poll(1000)[0][1] & select.POLLERR
        push = Push()
        assert push.wait(sock)
        assert push.sent.unreachable == 1
        assert poller.poll(1000)[0][1] & select.POLLERR == 0 or sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_ERROR
        )
