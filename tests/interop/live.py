"""Our two programs in a routed lab, and frames to send through them: what all tests here share.

::

    source              host                       router                     far
      eth0 ──────── mir0    up0 ──────────── host0    far0 ──────────── eth0
                 (mirrored)  203.0.113.2  203.0.113.1  198.51.100.1  198.51.100.7
                             2001:db8:2::2        ::1  2001:db8:3::1        ::7

``eth0`` of ``source`` and ``mir0`` say nothing by themselves, so that what is injected on the one is
all that is seen on the other. Judges are in ``netns-lab``: ``compare`` and ``truth``.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import shutil
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "netns-lab"))

import compare
import truth
from netlab import Lab, inside
from process import LabError, Process, wait_until

__all__ = ["Lab", "LabError", "Process", "compare", "inside", "truth", "wait_until"]

SEND = [sys.executable, "-m", "tunnelbridge.cli", "send"]
CHECK = [sys.executable, "-m", "tunnelbridge.cli", "check"]
LISTEN = [sys.executable, "-m", "collector.cli", "listen"]
DECAP = [sys.executable, "-m", "collector.cli", "decap"]

HOST4, HOST6 = "203.0.113.2", "2001:db8:2::2"
ROUTER4, ROUTER6 = "203.0.113.1", "2001:db8:2::1"
FAR4, FAR6 = "198.51.100.7", "2001:db8:3::7"
MIRRORED = "mir0"
FULL_FRAME = 1514
_counter = itertools.count(1)


def need(*tools: str) -> None:
    """Skip the calling test, naming the tool that is missing."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}, which is not installed")


def remote(address: str) -> str:
    """Return an address as it stands in a URL."""
    return f"[{address}]" if ":" in address else address


# --- the lab ---


@dataclass(frozen=True)
class Net:
    """The namespaces' names."""

    source: str
    host: str
    router: str
    far: str


def build(lab: Lab) -> Net:
    """Build the network of this module's picture."""
    net = Net(*(lab.namespace(role) for role in ("source", "host", "router", "far")))
    for name in (net.source, net.host):
        lab.setting(name, "net/ipv6/conf/default/disable_ipv6", "1")
    lab.veth((net.source, "eth0"), (net.host, MIRRORED), "02:00:00:00:01:01", "02:00:00:00:01:02")
    lab.setting(net.host, "net/ipv6/conf/default/disable_ipv6", "0")
    for name in (net.host, net.router, net.far):  # no second of "tentative" for fe80:: addresses
        lab.setting(name, "net/ipv6/conf/default/accept_dad", "0")
    lab.veth((net.host, "up0"), (net.router, "host0"))
    lab.veth((net.router, "far0"), (net.far, "eth0"))
    lab.address(net.host, "up0", f"{HOST4}/24", f"{HOST6}/64")
    lab.address(net.router, "host0", f"{ROUTER4}/24", f"{ROUTER6}/64")
    lab.address(net.router, "far0", "198.51.100.1/24", "2001:db8:3::1/64")
    lab.address(net.far, "eth0", f"{FAR4}/24", f"{FAR6}/64")
    lab.setting(net.router, "net/ipv4/ip_forward", "1")
    lab.setting(net.router, "net/ipv6/conf/all/forwarding", "1")
    for name, via4, via6 in (
        (net.host, ROUTER4, ROUTER6),
        (net.far, "198.51.100.1", "2001:db8:3::1"),
    ):
        lab.route(name, "default", via=via4)
        lab.command("ip", "-n", name, "-6", "route", "add", "default", "via", via6)
    for address in (FAR4, FAR6):  # neighbours are known before the first burst
        reach(net.host, address)
    return net


def path(net: Net) -> list[tuple[str, str]]:
    """Return the interfaces between host and far."""
    return [(net.host, "up0"), (net.router, "host0"), (net.router, "far0"), (net.far, "eth0")]


def reach(namespace: str, address: str) -> None:
    """Come back when an address has answered: nobody listens there, so it refuses."""
    inside(namespace, _reach, address)


def _reach(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (
        socket.socket(family, socket.SOCK_STREAM) as sock,
        contextlib.suppress(ConnectionRefusedError),
    ):
        sock.settimeout(5)
        sock.connect((address, 9))


@contextmanager
def routed() -> Iterator[tuple[Lab, Net]]:
    """Build the routed lab and take it down again."""
    need("ip", "ethtool", "tcpdump", "tc")
    with Lab() as lab:
        yield lab, build(lab)


# --- our programs ---


class Program:
    """A running ``tunnelbridge send`` or ``collector listen`` with its ledger."""

    def __init__(self, lab: Lab, command: Sequence[str], namespace: str, ready: str | None) -> None:
        number = next(_counter)
        self.stats = lab.folder / f"stats{number}.json"
        argv = [*command, "--stats", str(self.stats)]
        self.process: Process = lab.start(f"program{number}", argv, namespace, ready)

    def end(self, how: signal.Signals = signal.SIGINT) -> dict[str, Any]:
        """End it by a signal, within its 2 s; return its ledger."""
        code = self.process.stop(how, seconds=4)
        assert code == 0, f"exit code {code}: {self.process.last_words()}"
        return self.ledger()

    def wait(self, seconds: float = 20) -> dict[str, Any]:
        """Wait for its end; return its ledger."""
        code = self.process.wait(seconds)
        assert code == 0, f"exit code {code}: {self.process.last_words()}"
        return self.ledger()

    def ask(self) -> dict[str, Any]:
        """Ask for the ledger as it is now (SIGUSR1)."""
        self.stats.unlink(missing_ok=True)
        self.process.popen.send_signal(signal.SIGUSR1)
        wait_until(self.stats.exists, 5, "the ledger to be written")
        ledger: dict[str, Any] = json.loads(self.stats.read_text())
        return ledger

    def ledger(self) -> dict[str, Any]:
        """Return the ledger that was written at the end."""
        ledger: dict[str, Any] = json.loads(self.stats.read_text())
        return ledger

    @property
    def log(self) -> list[dict[str, Any]]:
        """Return what it has logged so far."""
        lines = self.process.err.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


@contextmanager
def ended(lab: Lab) -> Iterator[None]:
    """End what a failed test has left running, so that the next one is not disturbed."""
    before = len(lab._processes)
    try:
        yield
    finally:
        for process in reversed(lab._processes[before:]):
            if process.popen.poll() is None:
                process.stop()


def send(lab: Lab, namespace: str, *options: str) -> Program:
    """Start ``tunnelbridge send``; return when it clones (with ``-r`` at once)."""
    ready = None if "-r" in options else '"cloning"'
    return Program(lab, [*SEND, *options], namespace, ready)


def listen(lab: Lab, namespace: str, *options: str) -> Program:
    """Start ``collector listen``; return when it listens."""
    return Program(lab, [*LISTEN, *options], namespace, '"listening"')


def collected(path: Path, count: int, seconds: float = 8) -> list[compare.Frame]:
    """Return the frames of a growing capture once there are ``count``, or what there is in time."""
    frames: list[compare.Frame] = []

    def enough() -> bool:
        frames[:] = compare.read(path)
        return len(frames) >= count

    with contextlib.suppress(LabError):  # the caller's comparison says what is missing
        wait_until(enough, seconds, f"{count} frames", every=0.02)
    return frames


# --- frames ---


def inject(namespace: str, interface: str, frames: Sequence[bytes]) -> None:
    """Send frames as they are out of an interface."""

    def work() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind((interface, 0))
            for frame in frames:
                sock.send(frame)

    inside(namespace, work)


@functools.cache
def corpus() -> list[bytes]:
    """Return frames of many kinds, all different, from 60 octets to full size, tagged and not."""
    from scapy.layers.inet import ICMP, IP, TCP, UDP
    from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
    from scapy.layers.l2 import ARP, LLC, STP, Dot1Q, Dot3, Ether
    from scapy.packet import Raw

    ether = {"src": "02:00:00:00:01:01", "dst": "02:00:00:00:01:02"}
    ip, ip6 = IP(src="192.0.2.1", dst="192.0.2.2"), IPv6(src="2001:db8:1::1", dst="2001:db8:1::2")
    udp = UDP(sport=5000, dport=53)
    packets = [
        Ether(**ether) / ip / udp / Raw(b"x" * 18),
        Ether(**ether) / ip / TCP(sport=40000, dport=80, flags="S", seq=7, options=[("MSS", 1460)]),
        Ether(**ether)
        / ip
        / TCP(sport=40000, dport=80, flags="PA")
        / Raw(b"GET / HTTP/1.1\r\n\r\n"),
        Ether(**ether) / ip / ICMP() / Raw(b"ping" * 20),
        Ether(**ether)
        / IP(src="192.0.2.1", dst="192.0.2.2", flags="MF", id=9)
        / udp
        / Raw(b"f" * 64),
        Ether(**ether) / IP(src="192.0.2.1", dst="192.0.2.2", frag=9, id=9) / Raw(b"f" * 64),
        Ether(**ether) / ip6 / udp / Raw(b"six" * 20),
        Ether(**ether) / ip6 / TCP(sport=40001, dport=443, flags="A") / Raw(b"six"),
        Ether(**ether) / ip6 / ICMPv6EchoRequest(data=b"ping"),
        Ether(src=ether["src"], dst="ff:ff:ff:ff:ff:ff") / ARP(psrc="192.0.2.1", pdst="192.0.2.9"),
        Ether(**ether) / Dot1Q(vlan=5, prio=3) / ip / udp / Raw(b"tagged" * 10),
        Ether(**ether) / Dot1Q(vlan=0, prio=7) / ip / udp / Raw(b"priority" * 8),
        Ether(**ether, type=0x88A8) / Dot1Q(vlan=7) / Dot1Q(vlan=8) / ip6 / udp / Raw(b"q" * 40),
        Ether(**ether, type=0x9000) / Raw(b"\0" * 46),
        Dot3(src=ether["src"], dst="01:80:c2:00:00:00") / LLC() / STP(),
    ]
    packets += [
        Ether(**ether)
        / ip
        / UDP(sport=6000 + size, dport=53)
        / Raw(bytes([size % 251]) * (size - 42))
        for size in (61, 300, 1399, 1400, 1450, 1500, 1513, FULL_FRAME)
    ]
    frames = [bytes(packet) for packet in packets]
    return [frame + bytes(max(0, 60 - len(frame))) for frame in frames]


def bare_ip(frame: bytes) -> bytes | None:
    """Return what a tunnel of bare IP makes of a frame: synthetic MAC addresses; None if not IP."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    if frame[at : at + 2] not in (b"\x08\x00", b"\x86\xdd"):
        return None
    return bytes.fromhex("020000000002020000000001") + frame[at:]


def as_frames(octets: Sequence[bytes]) -> list[compare.Frame]:
    """Return whole frames as the judge reads them from a capture."""
    return [compare.Frame(each, len(each)) for each in octets]


def assert_same(expected: Sequence[compare.Frame], got: Sequence[compare.Frame]) -> None:
    """Assert that both hold the same frames, each as often, in any order."""
    wanted, found = Counter(expected), Counter(got)
    missing, extra = list((wanted - found).elements()), list((found - wanted).elements())
    problem = [
        f"{len(frames)} {what}, such as {[(f.wire_length, f.octets[:60].hex()) for f in frames[:3]]}"
        for frames, what in ((missing, "missing"), (extra, "not sent"))
        if frames
    ]
    assert not problem, "; ".join(problem)


def assert_nothing_lost(sender: dict[str, Any], collector: dict[str, Any] | None = None) -> None:
    """Assert that ledgers balance and no packet is in a bucket of lost ones."""
    assert sender["balanced"], sender
    assert sender["kernel_dropped"] == 0, sender
    for tunnel in sender["tunnels"]:
        lost = tunnel["errors"] or tunnel["queue_dropped"] or tunnel["refused"]
        assert not lost, tunnel
        assert tunnel["sent"] == tunnel["clones"], tunnel
    if collector is None:
        return
    assert collector["balanced"], collector
    assert collector["socket_dropped"] == 0, collector
    assert collector["rejected"] == {}, collector
    for stream in collector["streams"]:
        wrong = stream["lost"] or stream["reordered"] or stream["duplicate"] or stream["restarts"]
        assert not wrong, stream
    for sink in collector["sinks"]:
        assert not sink["dropped"], sink
        assert sink["delivered"] == collector["decapsulated"], sink


def write_pcap(path: Path, frames: Sequence[bytes]) -> Path:
    """Write a capture file with scapy; return its path."""
    from scapy.utils import PcapWriter

    with PcapWriter(str(path), linktype=1) as writer:
        for frame in frames:
            writer.write(frame)
    return path
