"""The ring against frames whose octets we know and against the kernel's other packet interface."""

from __future__ import annotations

import errno
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest

import lab
from tunnelbridge.batch import INBOUND, OUTBOUND, VNET_HEADER, Batch
from tunnelbridge.errors import UserError
from tunnelbridge.linux import libc, tpacket
from tunnelbridge.linux.ring import Ring

pytestmark = pytest.mark.usefixtures("root")


def returning(octets: int) -> libc.Program:
    """A filter that accepts every packet and keeps ``octets`` of it."""
    return np.array([(0x06, 0, 0, octets)], libc.BPF_INSTRUCTION)


ACCEPT_ALL = returning(262144)


class Wire:
    """A veth pair: ``send`` puts a frame on it at one end, the ring listens at the other."""

    def __init__(self, ns: str, near: str, far: str) -> None:
        self.ns, self.near, self.far = ns, near, far
        self._sockets = {name: lab.in_namespace(ns, _sender, name) for name in {near, far}}

    def send(self, *frames: bytes, end: str | None = None) -> None:
        for frame in frames:
            self._sockets[end or self.far].send(frame)

    def ring(self, **options: Any) -> Any:
        options = {"program": ACCEPT_ALL, "block_size": 1 << 17, "blocks": 8, **options}
        return closing(lab.in_namespace(self.ns, lambda: Ring(self.near, **options)))

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()


def _sender(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind((interface, 0))
    return sock


@contextmanager
def _wire() -> Iterator[Wire]:
    with (
        lab.namespace() as ns,
        lab.veth(ns, ns) as (near, far),
        closing(Wire(ns, near, far)) as wire,
    ):
        yield wire


@pytest.fixture(scope="module")
def wire(root: None) -> Iterator[Wire]:
    with _wire() as wire:
        yield wire


def frame(number: int, size: int = 60) -> bytes:
    """An Ethernet frame of an unassigned type, whose payload tells its number."""
    header = bytes.fromhex("02000000000b 02000000000a 88b5")
    return (header + struct.pack("!I", number) + bytes(range(256)) * (size // 256 + 1))[:size]


def blocks(ring: Ring, seconds: float = 5.0) -> Iterator[Batch]:
    """Yield ready blocks, released afterwards, for at most ``seconds``."""
    poll = select.poll()
    poll.register(ring, select.POLLIN)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        poll.poll(20)
        while (batch := ring.read()) is not None:
            yield batch
            ring.release()


class Seen(NamedTuple):
    octets: bytes
    wire_length: int
    timestamp: int
    direction: int
    vlan: int


def records(ring: Ring, count: int) -> list[Seen]:
    """Return the next ``count`` packets, however many blocks they took; fails if they do not come."""
    seen: list[Seen] = []
    for batch in blocks(ring):
        vlan = [0] * len(batch) if batch.vlan is None else batch.vlan.tolist()
        columns = batch.wire_length.tolist(), batch.timestamp.tolist(), batch.direction.tolist()
        octets = [batch.octets(i) for i in range(len(batch))]
        seen += map(Seen, octets, *columns, vlan)
        if len(seen) >= count:
            ring.release()
            break
    assert len(seen) == count
    return seen


def packets(ring: Ring, count: int) -> list[bytes]:
    return [seen.octets for seen in records(ring, count)]


def one_block(ring: Ring) -> Batch:
    return lab.until(ring.read, what="a block")


def test_frames_of_every_size_arrive_in_order_and_whole(wire: Wire) -> None:
    frames = [frame(i, size) for i, size in enumerate([14, 15, 60, 61, 1513, 1514, *range(20, 99)])]
    with wire.ring() as ring:
        assert ring.read() is None
        before = time.time_ns()
        wire.send(*frames)
        seen = records(ring, len(frames))
        assert [packet.octets for packet in seen] == frames
        assert [packet.wire_length for packet in seen] == [len(f) for f in frames]
        assert {packet.direction for packet in seen} == {INBOUND}
        times = [packet.timestamp for packet in seen]
        assert times == sorted(times)
        assert before <= times[0] <= times[-1] <= time.time_ns()
        assert ring.statistics() == (len(frames), 0)


def test_columns_that_say_nothing_are_left_out(wire: Wire) -> None:
    with wire.ring() as ring:
        wire.send(frame(0))
        batch = one_block(ring)
        assert batch.vlan is None
        assert batch.vnet is None
        assert not batch.memory.flags.writeable


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_batches_of_one_and_of_many(wire: Wire, count: int) -> None:
    frames = [frame(i) for i in range(count)]
    with wire.ring() as ring:
        wire.send(*frames)
        assert packets(ring, count) == frames


def test_a_small_ring_goes_round_and_several_blocks_are_held(wire: Wire) -> None:
    """Each frame sits alone in its block of one page, so twelve frames go round four blocks."""
    with wire.ring(block_size=4096, blocks=4) as ring:
        for turn in range(3):
            frames = [frame(4 * turn + i, 1514) for i in range(3)]
            held = []
            for sent in frames:
                wire.send(sent)
                held.append(one_block(ring))
            assert [[b.octets(i) for i in range(len(b))] for b in held] == [[f] for f in frames]
            for _ in frames:
                ring.release()
        assert ring.read() is None
        assert ring.statistics() == (9, 0)
        with pytest.raises(RuntimeError):
            ring.release()


def ready(ring: Ring) -> int:
    """Count the blocks that wait to be read."""
    status = [
        ring._words[ring._word(block, tpacket.BLOCK_STATUS)] & tpacket.TP_STATUS_USER
        for block in range(ring.blocks)
    ]
    return sum(bool(each) for each in status) - ring._held


def test_ready_blocks_become_one_batch_up_to_where_the_ring_begins_anew(wire: Wire) -> None:
    """Each frame sits alone in its block: six frames, of which two come after the ring's end."""
    with wire.ring(block_size=4096, blocks=8) as ring:
        for number in range(4):
            wire.send(frame(number, 1514))
            one_block(ring)
            ring.release()
        sent = [frame(number, 1514) for number in range(4, 10)]
        for number, octets in enumerate(sent):
            wire.send(octets)
            lab.until(lambda n=number: ready(ring) == n + 1, what="block")

        first = ring.read(3)
        second = ring.read(3)
        third = ring.read(3)

        assert first is not None
        assert second is not None
        assert third is not None
        got = [[batch.octets(i) for i in range(len(batch))] for batch in (first, second, third)]
        assert got == [sent[:3], sent[3:4], sent[4:]]
        assert ring.read(3) is None
        for held in (3, 2, 0):
            ring.release()
            assert ring._held == held


def test_all_blocks_held_means_none_is_ready(wire: Wire) -> None:
    with wire.ring(block_size=4096, blocks=4) as ring:
        for number in range(4):
            wire.send(frame(number))
            assert one_block(ring).octets(0) == frame(number)
        assert ring.read() is None  # the next one is the first, which we still hold
        ring.release()
        wire.send(frame(4))
        assert one_block(ring).octets(0) == frame(4)


def test_direction_and_ignoring_what_goes_out(wire: Wire) -> None:
    for ignored in (False, True):
        with wire.ring(ignore_outgoing=ignored) as ring:
            wire.send(frame(1), end=wire.far)
            wire.send(frame(2), end=wire.near)
            wire.send(frame(3), end=wire.far)
            outgoing = [] if ignored else [(frame(2), OUTBOUND)]
            expected = [(frame(1), INBOUND), *outgoing, (frame(3), INBOUND)]
            seen = records(ring, len(expected))
            assert [(packet.octets, packet.direction) for packet in seen] == expected


TAGS = {
    "8100 0005": 0x8100_0005,
    "88a8 0007 8100 0009": 0x88A8_0007,
    "8100 e000": 0x8100_E000,  # a priority tag: VLAN 0
    "8100 0000": 0x8100_0000,
    "8100 ffff": 0x8100_FFFF,
}


def test_tags_that_the_kernel_took_out_can_be_put_back(wire: Wire) -> None:
    plain = frame(0)
    tagged = [plain[:12] + bytes.fromhex(tags) + plain[12:] for tags in TAGS]
    with wire.ring() as ring:
        wire.send(plain, *tagged, plain)
        seen = records(ring, len(tagged) + 2)
        assert [packet.vlan for packet in seen] == [0, *TAGS.values(), 0]
        for packet, sent in zip(seen[1:], tagged, strict=False):
            tag = struct.pack("!I", packet.vlan)
            assert packet.octets[:12] + tag + packet.octets[12:] == sent
        assert seen[0].octets == seen[-1].octets == plain


def test_snap_length_keeps_the_length_on_the_wire(wire: Wire) -> None:
    with wire.ring(program=returning(64)) as ring:
        wire.send(frame(1, 1000), frame(2, 64), frame(3, 63))
        seen = records(ring, 3)
        assert [packet.octets for packet in seen] == [
            frame(1, 1000)[:64], frame(2, 64), frame(3, 63)
        ]  # fmt: skip
        assert [packet.wire_length for packet in seen] == [1000, 64, 63]


def test_another_interface_is_never_heard(wire: Wire) -> None:
    """Frames on a second pair while the ring opens: a socket is deaf until it is bound."""
    with lab.veth(wire.ns, wire.ns) as (near, far):
        other, stop = Wire(wire.ns, near, far), threading.Event()
        flood = threading.Thread(target=lambda: [None for _ in iter(stop.is_set, True)
                                                 if other.send(frame(666))])  # fmt: skip
        flood.start()
        try:
            for number in range(10):
                with wire.ring() as ring:
                    wire.send(frame(number))
                    assert packets(ring, 1) == [frame(number)]
        finally:
            stop.set()
            flood.join()
            other.close()


def test_promiscuous_while_open(wire: Wire) -> None:
    def promiscuous() -> bool:
        return "promiscuity 1" in lab.run("ip", "-n", wire.ns, "-d", "link", "show", wire.near)

    with wire.ring():
        assert promiscuous()
    assert not promiscuous()


def test_a_full_ring_counts_what_it_drops_and_counts_on(wire: Wire) -> None:
    with wire.ring(block_size=4096, blocks=4) as ring:
        wire.send(*[frame(i, 1000) for i in range(100)])
        accepted, drops = ring.statistics()
        assert accepted == 100
        assert ring.statistics() == (100, drops)
        readable = 0
        for batch in blocks(ring):
            readable += len(batch)
            if readable >= accepted - drops:
                ring.release()
                break
        assert 0 < readable == accepted - drops < 100
        wire.send(frame(100))
        assert packets(ring, 1) == [frame(100)]
        assert ring.statistics() == (101, drops)


def test_stop_keeps_what_came_before(wire: Wire) -> None:
    with wire.ring() as ring:
        wire.send(frame(1))
        ring.stop()
        wire.send(frame(2))
        assert packets(ring, 1) == [frame(1)]
        assert ring.statistics() == (1, 0)


def test_down_reports_once_and_up_works_again() -> None:
    with _wire() as wire, wire.ring() as ring:
        lab.run("ip", "-n", wire.ns, "link", "set", wire.near, "down")
        poll = select.poll()
        poll.register(ring, select.POLLIN)
        assert poll.poll(2000)[0][1] & select.POLLERR
        assert ring.read() is None
        assert ring.clear_error() == errno.ENETDOWN
        assert ring.clear_error() == 0
        assert poll.poll(0) == []
        lab.run("ip", "-n", wire.ns, "link", "set", wire.near, "up")
        lab.until(lambda: lab.carrier(wire.ns, wire.near), what="carrier")
        wire.send(frame(1))
        assert packets(ring, 1) == [frame(1)]


def test_opened_while_the_interface_is_down() -> None:
    with _wire() as wire:
        lab.run("ip", "-n", wire.ns, "link", "set", wire.near, "down")
        with wire.ring() as ring:
            assert ring.clear_error() == errno.ENETDOWN
            lab.run("ip", "-n", wire.ns, "link", "set", wire.near, "up")
            lab.until(lambda: lab.carrier(wire.ns, wire.near), what="carrier")
            wire.send(frame(1))
            assert packets(ring, 1) == [frame(1)]


@contextmanager
def _stream() -> Iterator[tuple[Wire, Callable[[], None]]]:
    """Two namespaces and a way to send 2 MB by TCP from the near to the far one."""
    with (
        lab.namespace() as ns, lab.namespace() as peer,
        lab.veth(ns, peer, "10.9.0.1/24", "10.9.0.2/24") as (near, _),
    ):  # fmt: skip

        def send() -> None:
            server = lab.in_namespace(peer, socket.create_server, ("10.9.0.2", 0))
            address = ("10.9.0.2", server.getsockname()[1])
            client = lab.in_namespace(ns, socket.create_connection, address)
            with server, client, server.accept()[0] as accepted:
                reader = threading.Thread(target=_swallow, args=(accepted,))
                reader.start()
                client.sendall(bytes(range(250)) * 8000)
                client.shutdown(socket.SHUT_WR)
                reader.join()

        wire = Wire(ns, near, near)
        with closing(wire):
            yield wire, send


def _swallow(sock: socket.socket) -> None:
    while sock.recv(1 << 20):
        pass


def _plain_reader(interface: str) -> socket.socket:
    """The kernel's other interface: recv() with the same virtio-net header in front."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(libc.SOL_PACKET, tpacket.PACKET_VNET_HDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
    sock.bind((interface, tpacket.ETH_P_ALL))
    sock.setblocking(False)
    return sock


def _drain(sock: socket.socket) -> list[bytes]:
    seen = []
    while True:
        try:
            seen.append(sock.recv(1 << 18))
        except BlockingIOError:
            return seen


def test_super_packets_and_their_headers_equal_what_recv_shows() -> None:
    """2 MB by TCP: segments up to 64 KiB with partial checksums, the same on both interfaces."""
    with _stream() as (wire, send):
        reader = lab.in_namespace(wire.ns, _plain_reader, wire.near)
        with reader, wire.ring(block_size=1 << 19, blocks=32) as ring:
            assert ring.vnet
            send()
            # Down, so that no late acknowledgement reaches one of the two only.
            lab.run("ip", "-n", wire.ns, "link", "set", wire.near, "down")
            assert ring.clear_error() == errno.ENETDOWN
            assert reader.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ENETDOWN
            expected = _drain(reader)
            accepted, drops = ring.statistics()
            assert drops == 0
            seen: list[bytes] = []
            for batch in blocks(ring):
                header = np.zeros(len(batch), VNET_HEADER) if batch.vnet is None else batch.vnet
                seen += [header[i].tobytes() + batch.octets(i) for i in range(len(batch))]
                assert (batch.length == batch.wire_length).all()
                if len(seen) >= accepted:
                    ring.release()
                    break
        assert max(map(len, seen)) > 60_000
        gso = [np.frombuffer(packet, VNET_HEADER, 1)[0] for packet in seen]
        assert {int(g["gso_type"]) for g in gso} >= {0, 1}
        # DATA_VALID (2) says nothing about work left undone: the ring leaves such headers out
        seen, expected = _without_data_valid(seen), _without_data_valid(expected)
        assert sorted(seen) == sorted(expected)
        # Both directions run on two processors at once: their order differs between any two readers.
        for sender in (b"\x0a\x09\x00\x01", b"\x0a\x09\x00\x02"):
            assert _sent_by(sender, seen) == _sent_by(sender, expected)


def _sent_by(address: bytes, seen: list[bytes]) -> list[bytes]:
    """The IPv4 packets of one source: 10 octets of virtio-net header, 14 of Ethernet, 12 of IP."""
    return [packet for packet in seen if packet[36:40] == address]


def _without_data_valid(seen: list[bytes]) -> list[bytes]:
    return [bytes([packet[0] & 1]) + packet[1:] for packet in seen]


def test_a_packet_longer_than_a_block_is_cut_and_says_so() -> None:
    with _stream() as (wire, send), wire.ring(block_size=8192, blocks=64) as ring:
        done = threading.Event()
        sender = threading.Thread(target=lambda: (send(), done.set()))
        sender.start()
        longest = np.zeros(2, np.int64)
        for batch in blocks(ring):
            if not len(batch):  # the kernel closed an empty block that the next packet did not fit
                continue
            longest = np.maximum(longest, [batch.length.max(), batch.wire_length.max()])
            end = batch.start + batch.length
            assert (batch.start // 8192 == (end - 1) // 8192).all()
            if longest[1] > 20_000 and done.is_set():
                ring.release()
                break
        sender.join()
        assert 8000 < longest[0] < 8192 < longest[1]


def test_without_virtio_headers_the_octets_are_the_same(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older kernel: refuses the ring while PACKET_VNET_HDR is on."""
    request = tpacket._request

    def older(sock: socket.socket, *arguments: int) -> None:
        if sock.getsockopt(libc.SOL_PACKET, tpacket.PACKET_VNET_HDR):
            raise OSError(errno.EINVAL, "simulated")
        request(sock, *arguments)

    monkeypatch.setattr(tpacket, "_request", older)
    with wire.ring() as ring:
        assert not ring.vnet
        wire.send(frame(1, 1514), frame(2, 60))
        assert packets(ring, 2) == [frame(1, 1514), frame(2, 60)]


@pytest.mark.parametrize(("room", "expected"), [(8, 8), (5, 4), (4, 4), (3, None)])
def test_fewer_blocks_where_memory_is_short(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, room: int, expected: int | None
) -> None:
    request = tpacket._request

    def short(sock: socket.socket, size: int, count: int) -> None:
        if count > room:
            raise OSError(errno.ENOMEM, "simulated")
        request(sock, size, count)

    monkeypatch.setattr(tpacket, "_request", short)
    if expected is None:
        with pytest.raises(UserError, match="no memory for a capture ring of 4 × 131072 octets"):
            wire.ring(blocks=64)
        return
    with wire.ring(blocks=64) as ring:
        assert ring.blocks == expected
        wire.send(frame(1))
        assert packets(ring, 1) == [frame(1)]


def test_no_such_interface_lists_those_there_are(wire: Wire) -> None:
    with pytest.raises(UserError) as caught:
        lab.in_namespace(wire.ns, lambda: Ring("eth77", program=ACCEPT_ALL))
    there = ", ".join(sorted(["lo", wire.near, wire.far]))
    assert str(caught.value) == f"no interface named eth77 (there are: {there})"


def test_a_filter_too_large_for_the_kernel(wire: Wire) -> None:
    lab.run("sysctl", "-qw", "net.core.optmem_max=4096", ns=wire.ns)
    program = np.repeat(ACCEPT_ALL, 4000)
    with pytest.raises(UserError, match=r"too large for this kernel.*optmem_max"):
        wire.ring(program=program)


def test_without_the_capability_one_line_says_what_to_do(root: None) -> None:
    program = (
        "import os, numpy; from tunnelbridge.linux import libc, ring\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "program = numpy.zeros(1, libc.BPF_INSTRUCTION)\n"
        "try: ring.Ring('lo', program=program)\n"
        "except Exception as error: print(type(error).__name__, error, sep='|')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.startswith("UserError|capturing from lo needs CAP_NET_RAW: run with sudo")


def test_close_twice_and_with_a_batch_in_hand(wire: Wire) -> None:
    with wire.ring() as ring:
        wire.send(frame(1))
        batch = one_block(ring)
        ring.close()
        wire.send(frame(2))
        assert batch.octets(0) == frame(1)
        assert ring.fileno() == -1
