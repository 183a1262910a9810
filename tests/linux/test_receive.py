"""Datagrams that the kernel, plain sockets and scapy send come in unchanged and in batches."""

from __future__ import annotations

import contextlib
import random
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from test_transmit import without_capabilities

import lab
from tunnelbridge.batch import INBOUND
from tunnelbridge.errors import UserError
from tunnelbridge.linux import libc, options, receive
from tunnelbridge.linux.listen import open_raw, open_udp, quiet
from tunnelbridge.linux.receive import Datagrams, Receiver
from tunnelbridge.linux.slab import Slab, SlabPool

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
FAMILIES = pytest.mark.parametrize("family", list(LOOPBACK), ids=["v4", "v6"])


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


def sender(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((LOOPBACK[family], 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return sock


def take(pool: SlabPool) -> Slab:
    slab = pool.take()
    assert slab is not None
    return slab


def collect(receiver: Receiver, pool: SlabPool, count: int) -> list[bytes]:
    """Receive ``count`` datagrams, through as many slabs as it takes."""
    got: list[bytes] = []

    def more() -> bool:
        slab = take(pool)
        datagrams = receiver.receive(slab)
        if datagrams is not None:
            got.extend(datagrams.batch.octets(n) for n in range(len(datagrams.batch)))
        slab.release()
        return len(got) >= count

    lab.until(more, what=f"{count} datagrams")
    return got


@pytest.fixture(scope="module")
def network(root: None) -> Iterator[tuple[str, str, str]]:
    """Two namespaces and the interface of the first, which sends."""
    with (
        lab.namespace(ipv6=True) as a,
        lab.namespace(ipv6=True) as b,
        lab.veth(a, b, "10.95.0.1/24", "10.95.0.2/24") as (end_a, end_b),
    ):
        lab.run("ip", "-n", a, "address", "add", "fd95::1/64", "dev", end_a, "nodad")
        lab.run("ip", "-n", b, "address", "add", "fd95::2/64", "dev", end_b, "nodad")
        yield a, b, end_a


@FAMILIES
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_all_datagrams_arrive_in_order(family: int, count: int) -> None:
    inner = [random.Random(n).randbytes(n % 90) for n in range(count)]
    pool = SlabPool(slabs=1, slots=64)
    with Receiver(open_udp(family, 0), slots=64) as receiver, sender(family) as far:
        target = (LOOPBACK[family], port_of(receiver._sock))
        for octets in inner:
            far.sendto(octets, target)
        assert collect(receiver, pool, count) == inner
        slab = take(pool)
        assert receiver.receive(slab) is None


@FAMILIES
def test_every_size_is_received_whole_between_others(family: int) -> None:
    longest = 65507 if family == socket.AF_INET else 65527
    sizes = [0, 1, 2046, 2047, 2048, 2049, 4096, 9000, 16, 65000, longest - 1, longest, 0, 3]
    inner = [random.Random(size).randbytes(size) for size in sizes]
    slab = take(SlabPool(slabs=1, slots=64))
    with Receiver(open_udp(family, 0), slots=64) as receiver, sender(family) as far:
        for _ in range(3):  # the same slab again: nothing of the last round shines through
            for octets in inner:
                far.sendto(octets, (LOOPBACK[family], port_of(receiver._sock)))
            datagrams = receiver.receive(slab)
            assert datagrams is not None
            batch = datagrams.batch
            assert [batch.octets(n) for n in range(len(batch))] == inner
            assert batch.length.tolist() == batch.wire_length.tolist() == sizes
            assert batch.direction.tolist() == [INBOUND] * len(sizes)
            inner.reverse()
            sizes.reverse()


def test_long_slots_cost_no_memory_until_a_long_datagram_comes() -> None:
    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123
            return int(statm.read().split()[1]) * resource.getpagesize()

    before = resident()
    pool = SlabPool()
    slab = take(pool)
    with Receiver(open_udp(socket.AF_INET, 0)) as receiver, sender(socket.AF_INET) as far:
        for size in (100, 60000):
            far.sendto(bytes(size), ("127.0.0.1", port_of(receiver._sock)))
        assert receiver.receive(slab) is not None
    assert slab.memory.size * 6 > 390 << 20
    assert resident() - before < 8 << 20


@FAMILIES
def test_sources_are_ipv4_mapped_or_ipv6(family: int) -> None:
    slab = take(SlabPool(slabs=1, slots=8))
    with Receiver(open_udp(family, 0), slots=8) as receiver, contextlib.ExitStack() as stack:
        senders = ["127.0.0.1", "127.1.2.3"] if family == socket.AF_INET else ["::1"]
        for address in senders:
            sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sock.bind((address, 0))
            sock.sendto(b"x", (LOOPBACK[family], port_of(receiver._sock)))
        datagrams = receiver.receive(slab)
    assert datagrams is not None
    mapped = [f"::ffff:{address}" if "." in address else address for address in senders]
    assert datagrams.source.shape == (len(senders), 16)
    assert [row.tobytes() for row in datagrams.source] == [
        socket.inet_pton(socket.AF_INET6, address) for address in mapped
    ]


def test_timestamps_are_the_arrival_in_order() -> None:
    slab = take(SlabPool(slabs=1, slots=64))
    with Receiver(open_udp(socket.AF_INET, 0)) as receiver, sender(socket.AF_INET) as far:
        began = time.time_ns()
        for _ in range(40):
            far.sendto(b"x", ("127.0.0.1", port_of(receiver._sock)))
        # wait for a clock tick, so that the time of reception is told from that of arrival
        sent = time.time_ns()
        lab.until(lambda: time.time_ns() > sent + 5_000_000)
        first = receiver.receive(slab)
        assert first is not None
        first_times = first.batch.timestamp.copy()
        for _ in range(20):
            far.sendto(b"x", ("127.0.0.1", port_of(receiver._sock)))
        second = receiver.receive(slab)
        assert second is not None
    times = [*first_times.tolist(), *second.batch.timestamp.tolist()]
    assert len(times) == 60
    assert times == sorted(times)
    assert began - 1_000_000 <= times[0]
    assert times[-1] <= time.time_ns()
    assert len(set(times)) > 10


def test_without_a_kernel_timestamp_the_callers_time_is_taken() -> None:
    slab = take(SlabPool(slabs=1, slots=64))
    with Receiver(open_udp(socket.AF_INET, 0)) as receiver, sender(socket.AF_INET) as far:
        target = ("127.0.0.1", port_of(receiver._sock))
        far.sendto(b"x", target)
        assert receiver.receive(slab, now=7).batch.timestamp[0] > 10**18  # type: ignore[union-attr]
        receiver._sock.setsockopt(socket.SOL_SOCKET, receive.SO_TIMESTAMPNS, 0)
        far.sendto(b"x", target)
        far.sendto(b"x", target)
        assert receiver.receive(slab, now=7).batch.timestamp.tolist() == [7, 7]  # type: ignore[union-attr]


def test_dropped_datagrams_are_counted() -> None:
    pool = SlabPool(slabs=1)
    with Receiver(open_udp(socket.AF_INET, 0)) as receiver, sender(socket.AF_INET) as far:
        receiver._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert receiver.drops() == 0
        total = 0
        for _ in range(2):
            for _ in range(500):
                far.sendto(bytes(100), ("127.0.0.1", port_of(receiver._sock)))
            slab = take(pool)
            datagrams = receiver.receive(slab)
            assert datagrams is not None
            total += len(datagrams.batch)
            slab.release()
        assert 0 < total < 500
        assert receiver.drops() == 1000 - total


def test_the_drop_counter_goes_on_where_the_kernels_wraps() -> None:
    class Wrapping:
        values = iter([2**32 - 5, 2**32 - 1, 3, 3])

        def getsockopt(self, *_: int) -> bytes:
            return struct.pack("=9I", *[9] * 8, next(self.values))

    receiver = Receiver(Wrapping(), slots=1)  # type: ignore[arg-type]
    drops = [receiver.drops() for _ in range(4)]
    assert drops == [2**32 - 5, 2**32 - 1, 2**32 + 3, 2**32 + 3]


@pytest.mark.usefixtures("root")
class TestRaw:
    @FAMILIES
    def test_only_the_listed_ports_are_received(
        self, network: tuple[str, str, str], family: int
    ) -> None:
        a, _, _ = network
        ports = [4789, 8472, 6081, 65535]
        pool = SlabPool(slabs=1, slots=64)
        raw = lab.in_namespace(a, open_raw, family, socket.IPPROTO_UDP, None, ports)
        none = lab.in_namespace(a, open_raw, family, socket.IPPROTO_UDP, None, [])
        everything = lab.in_namespace(a, open_raw, family, socket.IPPROTO_UDP)
        with (
            Receiver(raw) as receiver,
            none,
            everything,
            lab.in_namespace(a, sender, family) as far,
        ):
            tried = [1, 4789, 4788, 8472, 53, 6081, 65535, 4790, 46611]  # 46611: 4789 byte-swapped
            for port in tried:
                far.sendto(b"to %d" % port, (LOOPBACK[family], port))
            got = collect(receiver, pool, 4)
            everything.settimeout(5)
            assert [everything.recv(100)[-1:] for _ in tried] == [b"%d" % (p % 10) for p in tried]
            with pytest.raises(BlockingIOError):
                none.recv(100, socket.MSG_DONTWAIT)
        header = 28 if family == socket.AF_INET else 8
        assert [octets[header:] for octets in got] == [b"to %d" % port for port in ports]
        assert [struct.unpack_from("!H", octets, header - 6)[0] for octets in got] == ports

    def test_ip_options_do_not_hide_the_port(self, network: tuple[str, str, str]) -> None:
        a, _, _ = network
        raw = lab.in_namespace(a, open_raw, socket.AF_INET, 17, None, [4789])
        with Receiver(raw) as receiver, lab.in_namespace(a, sender, socket.AF_INET) as far:
            far.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01" * 8)
            far.sendto(b"deeper", ("127.0.0.1", 4789))
            got = collect(receiver, SlabPool(slabs=1, slots=4), 1)
        assert got[0][0] == 0x47
        assert got[0][28 + 8 :] == b"deeper"

    @FAMILIES
    def test_a_wrong_outer_checksum_loses_nothing(
        self, network: tuple[str, str, str], family: int
    ) -> None:
        a, b, _ = network
        from scapy.layers.inet import UDP

        datagram = bytes(UDP(sport=50000, dport=4789, chksum=0x1234) / b"still good")
        raw = lab.in_namespace(b, open_raw, family, 17, None, [4789])
        remote = "10.95.0.2" if family == socket.AF_INET else "fd95::2"
        plain = lab.in_namespace(b, open_udp, family, 4789)
        sending = lab.in_namespace(a, socket.socket, family, socket.SOCK_RAW, 17)
        with Receiver(raw) as receiver, Receiver(plain) as refusing, sending:
            sending.sendto(datagram, (remote, 0))
            got = collect(receiver, SlabPool(slabs=1, slots=4), 1)
            assert refusing.receive(take(SlabPool(slabs=1, slots=4))) is None  # a UDP socket's way
        assert got[0].endswith(datagram)

    @FAMILIES
    def test_fragments_come_reassembled_with_their_source(
        self, network: tuple[str, str, str], family: int
    ) -> None:
        a, b, _ = network
        remote = "10.95.0.2" if family == socket.AF_INET else "fd95::2"
        local = "::ffff:10.95.0.1" if family == socket.AF_INET else "fd95::1"
        inner = [random.Random(size).randbytes(size) for size in (1600, 40, 9000, 60000)]
        for protocol in (47, 17):
            ports = [4789] if protocol == 17 else None
            raw = lab.in_namespace(b, open_raw, family, protocol, remote, ports)
            head = struct.pack("!HHHH", 50000, 4789, 0, 0) if protocol == 17 else b"\0\0\x65\x58"
            sending = lab.in_namespace(a, socket.socket, family, socket.SOCK_RAW, protocol)
            with Receiver(raw) as receiver, sending:
                slab = take(SlabPool(slabs=1, slots=16))
                got: list[Datagrams] = []
                for octets in inner:
                    sending.sendto(head + octets, (remote, 0))
                    assert select.select([raw], [], [], 5)[0], "nothing arrived"
                    received = receiver.receive(slab)
                    assert received is not None
                    assert len(received.batch) == 1
                    skip = 20 if family == socket.AF_INET else 0
                    assert received.batch.octets(0)[skip:] == head + octets
                    assert received.source[0].tobytes() == socket.inet_pton(socket.AF_INET6, local)
                    got.append(received)
                assert len(got) == len(inner)

    def test_nothing_from_before_the_filter_is_left_in_the_queue(
        self, network: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a, _, _ = network
        attach = libc.attach_filter
        with lab.in_namespace(a, sender, socket.AF_INET) as far:

            def late(*arguments: Any) -> None:
                far.sendto(b"foreign", ("127.0.0.1", 53))
                attach(*arguments)

            monkeypatch.setattr(libc, "attach_filter", late)
            opening = lab.in_namespace(a, open_raw, socket.AF_INET, 17, None, [4789])
            with opening as raw:
                far.sendto(b"wanted", ("127.0.0.1", 4789))
                raw.settimeout(5)
                assert raw.recv(100)[28:] == b"wanted"

    @FAMILIES
    def test_quiet_ports_are_answered_by_nobody(
        self, network: tuple[str, str, str], family: int
    ) -> None:
        a, _, _ = network

        def refused() -> bool:
            with lab.in_namespace(a, sender, family) as far:
                far.connect((LOOPBACK[family], 4789))
                far.send(b"x")
                return far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

        assert refused()
        holding = lab.in_namespace(a, quiet, family, 4789)
        assert holding is not None
        with holding:
            assert not refused()
            assert holding.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < 5000
            with pytest.raises(BlockingIOError):
                holding.recv(10, socket.MSG_DONTWAIT)
            assert lab.in_namespace(a, quiet, family, 4789) is None
        assert refused()

    def test_large_receive_buffer(self) -> None:
        with open_udp(socket.AF_INET, 0) as sock:
            size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert size >= 64 << 20


def test_both_families_listen_on_one_port() -> None:
    with open_udp(socket.AF_INET, 0) as v4, open_udp(socket.AF_INET6, port_of(v4)) as v6:
        assert port_of(v4) == port_of(v6)


def test_a_port_in_use_is_one_clear_line() -> None:
    with open_udp(socket.AF_INET, 0) as first:
        port = port_of(first)
        with pytest.raises(UserError, match=f"^UDP port {port} is in use") as caught:
            open_udp(socket.AF_INET, port)
        assert quiet(socket.AF_INET, port) is None
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "address", "message"),
    [
        (socket.AF_INET, "198.51.100.7", "198.51.100.7 is not an address of this host"),
        (socket.AF_INET6, "2001:db8::7", "2001:db8::7 is not an address of this host"),
        (socket.AF_INET, "::1", "::1 is not an IPv4 address"),
        (socket.AF_INET6, "127.0.0.1", "127.0.0.1 is not an IPv6 address"),
        (socket.AF_INET, "nonsense", "'nonsense' is not an IP address"),
    ],
)
@pytest.mark.usefixtures("root")
def test_wrong_addresses_are_one_clear_line(family: int, address: str, message: str) -> None:
    for opener in (
        lambda: open_udp(family, 0, address),
        lambda: open_raw(family, 47, address),
        lambda: quiet(family, 0, address),
    ):
        with pytest.raises(UserError, match=message):
            opener()


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("protocol", "name"),
    [(47, "GRE"), (17, "UDP"), (4, "IPv4-in-IP"), (41, "IPv6-in-IP"), (97, "EtherIP"),
     (137, "MPLS-in-IP"), (143, "IP protocol 143")],
)  # fmt: skip
def test_who_lacks_a_raw_socket_is_told_for_what(protocol: int, name: str) -> None:
    raw = without_capabilities(lambda: open_raw(socket.AF_INET, protocol))
    assert isinstance(raw, UserError)
    assert str(raw).startswith(f"receiving {name} tunnels needs CAP_NET_RAW")


@pytest.mark.usefixtures("root")
def test_missing_capabilities_are_named() -> None:
    low = without_capabilities(lambda: open_udp(socket.AF_INET, 53))
    assert isinstance(low, UserError)
    assert str(low).startswith("listening on UDP port 53 needs CAP_NET_BIND_SERVICE")
    plain = without_capabilities(lambda: open_udp(socket.AF_INET, 0))
    assert isinstance(plain, socket.socket)  # a smaller buffer, but it works
    plain.close()


class TestSlabs:
    def test_a_pool_runs_dry_and_fills_again(self) -> None:
        pool = SlabPool(slabs=2, slots=4)
        first, second = take(pool), take(pool)
        assert pool.take() is None
        first.retain()
        first.release()
        assert pool.take() is None
        first.release()
        assert pool.take() is first
        assert second is not first

    def test_wrong_counting_is_a_bug(self) -> None:
        pool = SlabPool(slabs=1, slots=4)
        slab = take(pool)
        slab.release()
        with pytest.raises(ValueError, match="released more often"):
            slab.release()
        with pytest.raises(ValueError, match="nobody holds"):
            slab.retain()
        assert pool.free == 1

    def test_large_slots_must_hold_any_datagram(self) -> None:
        with pytest.raises(ValueError, match="65535"):
            SlabPool(slabs=1, slots=4, large=9000)

    def test_references_are_counted_across_threads(self) -> None:
        pool = SlabPool(slabs=1, slots=4)
        for _ in range(20):
            slab = take(pool)
            for _ in range(400):
                slab.retain()
            threads = [
                threading.Thread(target=lambda: [slab.release() for _ in range(100)])  # noqa: B023
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert pool.free == 0
            slab.release()
            assert pool.free == 1

    def test_batches_in_different_slabs_do_not_touch(self) -> None:
        pool = SlabPool(slabs=2, slots=4)
        first, second = take(pool), take(pool)
        with (
            Receiver(open_udp(socket.AF_INET, 0), slots=4) as receiver,
            sender(socket.AF_INET) as far,
        ):
            target = ("127.0.0.1", port_of(receiver._sock))
            far.sendto(b"one", target)
            one = receiver.receive(first)
            far.sendto(b"two and more", target)
            two = receiver.receive(second)
        assert one is not None
        assert two is not None
        assert (one.batch.octets(0), two.batch.octets(0)) == (b"one", b"two and more")
        assert one.source.tobytes() == two.source.tobytes()
        assert one.slab is first


def test_options_say_what_they_could_not_enlarge() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert without_capabilities(lambda: options.enlarge_receive_buffer(sock, 8 << 20)) is None
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > 200_000


def test_receiving_a_slab_smaller_than_the_receiver() -> None:
    slab = take(SlabPool(slabs=1, slots=4))
    with (
        Receiver(open_udp(socket.AF_INET, 0), slots=1024) as receiver,
        sender(socket.AF_INET) as far,
    ):
        for n in range(6):
            far.sendto(bytes([n]), ("127.0.0.1", port_of(receiver._sock)))
        got = receiver.receive(slab)
        assert got is not None
        assert [got.batch.octets(n) for n in range(len(got.batch))] == [b"\0", b"\1", b"\2", b"\3"]
        rest = receiver.receive(slab)
        assert rest is not None
        assert [rest.batch.octets(n) for n in range(len(rest.batch))] == [b"\4", b"\5"]
