"""The kernel as judge: what it puts on a wire without offloads is what we make of its super-packets.

An interface with all offloads is captured, with the virtio-net header, by a packet socket. Its
egress is mirrored into a second veth pair whose offloads are off, so the kernel itself cuts and sums
there. Both lists of frames have to be the same, octet for octet; tshark has to find no bad checksum.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from restore_oracle import TCP, UDP, Packet, Vnet, build, restored

import lab
from lab import need
from tunnelbridge.batch import VNET_HEADER, Batch, from_packets
from tunnelbridge.restore.restore import Restored, restore

pytestmark = pytest.mark.usefixtures("root")

SOL_PACKET, AUXDATA, VNET_HDR = 263, 8, 15
SOL_UDP, UDP_SEGMENT = 17, 103
VLAN_VALID = 16
OUTGOING = 4
BEGIN, END = b"the first packet of this test", b"the last packet of this test"
DOT1Q = 0x8100 << 16


@dataclass
class Wire:
    """Namespace a sends through ``out`` to b's ``into``; what the kernel makes of it is at ``tap``."""

    a: str
    b: str
    out: str
    into: str
    c: str
    tap: str


@pytest.fixture
def wire() -> Iterator[Wire]:
    need("ip", "tc", "ethtool", "tshark", "sysctl")
    with contextlib.ExitStack() as stack:
        a, b, c = (stack.enter_context(lab.namespace(ipv6=True)) for _ in range(3))
        out, into = stack.enter_context(lab.veth(a, b, "10.0.0.1/24", "10.0.0.2/24"))
        mirror, tap = stack.enter_context(lab.veth(a, c))
        for namespace, interface, address in ((a, out, "fd00::1/64"), (b, into, "fd00::2/64")):
            lab.run("ip", "-n", namespace, "address", "add", address, "dev", interface, "nodad")
        lab.run("sysctl", "-w", f"net.ipv6.conf.{mirror}.disable_ipv6=1", ns=a)
        lab.run("ethtool", "-K", mirror, "tso", "off", "gso", "off", "tx", "off", "sg", "off",
                "tx-udp-segmentation", "off", ns=a)  # fmt: skip
        lab.run("tc", "-n", a, "qdisc", "add", "dev", out, "clsact")
        lab.run("tc", "-n", a, "filter", "add", "dev", out, "egress",
                "bpf", "bytecode", "1,6 0 0 4294967295",
                "action", "mirred", "egress", "mirror", "dev", mirror)  # fmt: skip
        yield Wire(a, b, out, into, c, tap)


class Reader:
    """A packet socket that keeps everything, with virtio-net header and stripped tag."""

    def __init__(self, namespace: str, interface: str) -> None:
        self.socket = lab.in_namespace(
            namespace, socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0
        )
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 1 << 28)  # SO_RCVBUFFORCE
        self.socket.setsockopt(SOL_PACKET, VNET_HDR, 1)
        self.socket.setsockopt(SOL_PACKET, AUXDATA, 1)
        lab.in_namespace(namespace, self.socket.bind, (interface, 3))
        self.socket.settimeout(10)

    def read(self, *, outgoing: bool, done: Callable[[list[bytes]], bool] | None = None) -> Batch:
        """Return what went in one direction between the markers, or from the first until ``done``."""
        done = done or (lambda frames: END in frames[-1])
        frames: list[bytes] = []
        headers, tags = [], []
        while not (frames and done(frames)):
            data, extra, flags, address = self.socket.recvmsg(1 << 20, 256)
            assert not flags & socket.MSG_TRUNC
            if (address[2] == OUTGOING) != outgoing:
                continue
            tag = 0
            for level, kind, value in extra:
                if (level, kind) == (SOL_PACKET, AUXDATA):
                    status, tci, tpid = struct.unpack("=I12xHH", value)
                    tag = (tpid << 16 | tci) if status & VLAN_VALID else 0
            if BEGIN in data:
                frames, headers, tags = [], [], []
                continue
            headers.append(np.frombuffer(data, VNET_HEADER, 1))
            frames.append(data[10:])
            tags.append(tag)
        dropped = struct.unpack("II", self.socket.getsockopt(SOL_PACKET, 6, 8))[1]
        assert dropped == 0
        batch = from_packets(frames, direction=int(outgoing))
        batch.vnet, batch.vlan = np.concatenate(headers), np.array(tags, np.int64)
        return batch

    def close(self) -> None:
        self.socket.close()


def raw_socket(wire: Wire, *, vnet: bool) -> socket.socket:
    """Return a packet socket that sends on the sender's interface."""
    raw = lab.in_namespace(wire.a, socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 0)
    lab.in_namespace(wire.a, raw.bind, (wire.out, 0))
    raw.setsockopt(SOL_PACKET, VNET_HDR, int(vnet))
    return raw


def packets(result: Restored) -> list[bytes]:
    return [result.batch.octets(i) for i in range(len(result.batch))]


def judge(wire: Wire, tmp_path: Path, send: Callable[[], None], *, supers: bool = True) -> Restored:
    """Run ``send``; compare both ends' restored frames with the kernel's; return the sender's.

    ``supers`` tells whether there have to be super-packets, lest a test prove nothing.
    """
    with contextlib.ExitStack() as stack:
        out, into, tap = (
            stack.enter_context(contextlib.closing(Reader(*where)))
            for where in ((wire.a, wire.out), (wire.b, wire.into), (wire.c, wire.tap))
        )
        _mark(wire, BEGIN)  # what the namespaces said before, some readers have not heard
        send()
        _mark(wire, END)
        sent, received = out.read(outgoing=True), into.read(outgoing=False)
        truth = tap.read(outgoing=False)
    assert truth.vnet is not None
    assert not truth.vnet["gso_type"].any()  # the judge itself cut and summed everything
    assert not (truth.vnet["flags"] & 1).any()
    expected = packets(restore(truth))
    assert sent.vnet is not None
    assert sent.vnet["gso_type"].any() or not supers
    result = restore(sent)
    assert result.unsegmented == 0
    assert _difference(packets(result), expected) == ([], [])
    assert _difference(packets(restore(received)), expected) == ([], [])
    _no_bad_checksums(tmp_path / "restored.pcap", packets(result))
    return result


def _difference(ours: list[bytes], kernel: list[bytes]) -> tuple[list[str], list[str]]:
    """Return what only we have and what only the kernel has, readable in a failure."""
    left, right = Counter(ours), Counter(kernel)
    return tuple(  # type: ignore[return-value]
        [f"{len(frame)}: {frame[:120].hex()}" for frame in sorted((one - other).elements())][:5]
        for one, other in ((left, right), (right, left))
    )


def _ours(frame: bytes) -> bool:
    """Tell the frames of ``build`` from what a namespace says by itself."""
    return frame[:12] == build()[0][:12]


def _mark(wire: Wire, text: bytes) -> None:
    with lab.in_namespace(wire.a, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as marker:
        marker.sendto(text, ("10.0.0.2", 9))


def _no_bad_checksums(path: Path, frames: list[bytes]) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1))
        for frame in frames:
            file.write(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)
    done = subprocess.run(
        ["tshark", "-r", str(path), "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE",
         "-o", "ip.check_checksum:TRUE", "-T", "fields", "-e", "ip.checksum.status",
         "-e", "tcp.checksum.status", "-e", "udp.checksum.status"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == len(frames)
    statuses = {status for line in lines for status in line.replace(",", "\t").split("\t")}
    # good; no such header; a UDP checksum of zero, which over IPv6 is "illegal" (but RFC 6935)
    assert statuses <= {"1", "", "3", "4"}, statuses
    assert "1" in statuses


def bulk(wire: Wire, to: str, octets: int = 1_500_000) -> None:
    """Send octets over TCP, in pieces of many sizes, until the receiver has seen the end."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    server = lab.in_namespace(wire.b, socket.socket, family, socket.SOCK_STREAM)
    with server, lab.in_namespace(wire.a, socket.socket, family, socket.SOCK_STREAM) as client:
        server.bind((to, 5000))
        server.listen()
        server.settimeout(20)
        client.settimeout(20)
        heard = bytearray()

        def hear() -> None:
            peer, _ = server.accept()
            with peer:
                while piece := peer.recv(1 << 20):
                    heard.extend(piece)

        thread = threading.Thread(target=hear)
        thread.start()
        client.connect((to, 5000))
        data = bytes(i * i % 253 for i in range(10_007)) * (octets // 10_007 + 1)
        for size in (1, 2, 1448, 1449, 4001, octets - 6901):
            client.sendall(data[:size])
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
        thread.join(20)
        assert len(heard) == octets


@pytest.mark.parametrize("to", ["10.0.0.2", "fd00::2"])
def test_bulk_tcp(wire: Wire, tmp_path: Path, to: str) -> None:
    judge(wire, tmp_path, lambda: bulk(wire, to))


@pytest.mark.parametrize("to", ["10.0.0.2", "fd00::2"])
def test_big_tcp(wire: Wire, tmp_path: Path, to: str) -> None:
    lab.in_namespace(wire.a, _allow_big_tcp, wire.out, 180_000)
    result = judge(wire, tmp_path, lambda: bulk(wire, to, 6_000_000))
    assert np.bincount(result.index).max() > 46  # more segments than 64 KiB can have


def _allow_big_tcp(interface: str, size: int) -> None:
    """Set IFLA_GSO_MAX_SIZE and IFLA_GSO_IPV4_MAX_SIZE, which an older ``ip`` does not know."""
    index = socket.if_nametoindex(interface)
    attributes = struct.pack("=HHIHHI", 8, 41, size, 8, 63, size)
    body = struct.pack("=BxHiII", 0, 0, index, 0, 0) + attributes
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.send(struct.pack("=IHHII", 16 + len(body), 16, 5, 1, 0) + body)  # RTM_NEWLINK, ACK
        code = struct.unpack_from("=i", netlink.recv(4096), 16)[0]
    if code:
        pytest.skip(f"this kernel refuses BIG TCP sizes (netlink error {code})")


@pytest.mark.parametrize("to", ["10.0.0.2", "fd00::2"])
@pytest.mark.parametrize("size", [1, 511, 1400])
def test_udp_segments(wire: Wire, tmp_path: Path, to: str, size: int) -> None:
    judge(wire, tmp_path, lambda: datagrams(wire, to, size))


def datagrams(wire: Wire, to: str, size: int) -> None:
    """Send with UDP_SEGMENT: many datagrams in one call, with and without a shorter last one."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with lab.in_namespace(wire.a, socket.socket, family, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(SOL_UDP, UDP_SEGMENT, size)
        for octets in (size * 40, size * 39 + 1, size * 2, size, 1):
            sender.sendto(bytes(i % 255 for i in range(octets)), (to, 5000))


@pytest.mark.parametrize("tags", [(), (DOT1Q | 5,), (DOT1Q,), (0x88A8 << 16 | 0xE007, DOT1Q | 9)])
def test_crafted_super_packets_behind_tags(
    wire: Wire, tmp_path: Path, tags: tuple[int, ...]
) -> None:
    judge(wire, tmp_path, lambda: crafted(wire, tags))


def crafted(wire: Wire, tags: tuple[int, ...]) -> None:
    """Send super-packets and partial ones of each protocol; ids and sequence numbers wrap."""
    with raw_socket(wire, vnet=True) as raw:
        for version, protocol, kind, offset in (
            (4, TCP, 1, 16), (6, TCP, 4, 16), (4, UDP, 5, 6), (6, UDP, 5, 6),
        ):  # fmt: skip
            for octets, size, flags in ((5000, 1001, 0x19), (4000, 1000, 0x99), (900, 0, 0x18)):
                frame, at = build(
                    version, protocol, bytes(i % 239 for i in range(octets)), tags=tags,
                    options=b"\x01" * 12, ident=0xFFFE, sequence=2**32 - 1500, flags=flags,
                )  # fmt: skip
                ecn = 0x80 if flags & 0x80 and protocol == TCP else 0
                gso = kind | ecn if size else 0
                raw.send(struct.pack("=BBHHHH", 1, gso, at + 20, size, at, offset) + frame)


RECEIVED: dict[str, dict[str, Any]] = {
    "plain": {},
    "push and finish": {"flags": 0x19},
    # kernels differ in whether they merge these two
    "CWR on the first": {"flags": 0x90, "ecn": 0x80},
    "CWR on all": {"flags": 0x90},
    "options": {"options": b"\x01\x01\x08\x0a" + bytes(8)},
    "ids wrap": {"ident": 0xFFFE},
    "id fixed at 0": {"ident": 0},
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("case", RECEIVED)
def test_merged_by_gro_and_cut_again(wire: Wire, version: int, case: str) -> None:
    """Real frames, merged by the receiver's GRO, are the frames that were sent."""
    lab.run("ethtool", "-K", wire.out, "tso", "off", "tx", "off", ns=wire.a)
    lab.run("ethtool", "-K", wire.into, "gro", "on", ns=wire.b)
    for name, value in (("napi_defer_hard_irqs", 10), ("gro_flush_timeout", 20_000_000)):
        lab.run("sh", "-c", f"echo {value} > /sys/class/net/{wire.into}/{name}", ns=wire.b)
    options = dict(RECEIVED[case])
    kind = (1 if version == 4 else 4) | options.pop("ecn", 0)
    frame, at = build(version, TCP, bytes(i % 241 for i in range(9500)), **options)
    whole = Packet(frame, Vnet(1, kind, 0, 1000, at, 16), inbound=True)
    sent = restored(whole)
    assert len(sent) == 10
    with (
        contextlib.closing(Reader(wire.b, wire.into)) as reader,
        raw_socket(wire, vnet=False) as raw,
    ):
        _mark(wire, BEGIN)
        for piece in sent:
            raw.send(piece)
        received = reader.read(
            outgoing=False,
            done=lambda frames: sum(len(f) - len(frame) + 9500 for f in frames if _ours(f)) >= 9500,
        )
    result = restore(received)
    assert _difference([f for f in packets(result) if _ours(f)], sent) == ([], [])
    merged = len(received) < len(result.batch)
    assert merged or "CWR" in case, "GRO merged nothing: this proves nothing"


def vxlan(wire: Wire, outer: str, identifier: int, *options: str) -> tuple[str, str]:
    """Put a kernel vxlan device on each side; return the two inner addresses of b."""
    for namespace, interface, here, there in ((wire.a, wire.out, 1, 2), (wire.b, wire.into, 2, 1)):
        name = f"vx{identifier}"
        lab.run("ip", "-n", namespace, "link", "add", name, "type", "vxlan", "id", str(identifier),
                "local", f"{outer}{here}", "remote", f"{outer}{there}", "dstport", str(4789),
                "dev", interface if identifier == 1 else f"vx{identifier - 1}", *options)  # fmt: skip
        for address in (f"10.{identifier}.0.{here}/24", f"fd0{identifier}::{here}/64"):
            nodad = ("nodad",) if ":" in address else ()
            lab.run("ip", "-n", namespace, "address", "add", address, "dev", name, *nodad)
        lab.run("ip", "-n", namespace, "link", "set", name, "up")
    return f"10.{identifier}.0.2", f"fd0{identifier}::2"


@pytest.mark.parametrize("inner", [0, 1])
@pytest.mark.parametrize(
    ("outer", "options"),
    [
        ("10.0.0.", ["noudpcsum"]),
        ("10.0.0.", ["udpcsum"]),
        ("fd00::", ["udp6zerocsumtx", "udp6zerocsumrx"]),
        ("fd00::", ["noudp6zerocsumtx"]),
    ],
)
def test_tcp_in_vxlan(
    wire: Wire, tmp_path: Path, outer: str, options: list[str], inner: int
) -> None:
    to = vxlan(wire, outer, 1, *options)[inner]
    judge(wire, tmp_path, lambda: bulk(wire, to))


@pytest.mark.parametrize("checksum", ["noudpcsum", "udpcsum"])
def test_tcp_in_vxlan_in_vxlan(wire: Wire, tmp_path: Path, checksum: str) -> None:
    vxlan(wire, "10.0.0.", 1, checksum)
    to = vxlan(wire, "10.1.0.", 2, checksum)[1]
    # The kernel cuts before the second tunnel; checksums inside stay undone, or use those inside.
    judge(wire, tmp_path, lambda: bulk(wire, to, 200_000), supers=False)


@pytest.mark.parametrize("checksum", ["noudpcsum", "udpcsum"])
@pytest.mark.parametrize("inner", [0, 1])
def test_udp_segments_in_vxlan(wire: Wire, tmp_path: Path, checksum: str, inner: int) -> None:
    to = vxlan(wire, "10.0.0.", 1, checksum)[inner]
    judge(wire, tmp_path, lambda: datagrams(wire, to, 1001))
