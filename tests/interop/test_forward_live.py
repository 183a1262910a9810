"""Forwarding by a running collector: ERSPAN III comes in, the kernel's vxlan device takes it out.

The collector runs on ``far``; what it forwards goes to the router, which has kernel devices and
plain sockets. The sender is scapy, or our own where tunnels of several kinds are to meet.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import live
import pytest
from live import FAR4, FAR6, HOST4, Lab, Net, Process, Program, as_frames, inside, remote, truth

pytestmark = pytest.mark.usefixtures("root")

ROUTER4, ROUTER6 = "198.51.100.1", "2001:db8:3::1"
VNI = 4242
MACS = {"src": "02:00:00:00:01:01", "dst": "02:00:00:00:01:02"}  # or scapy would ask for them
_recordings = itertools.count()


@dataclass(frozen=True)
class Place:
    lab: Lab
    net: Net


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with live.routed() as (lab, net):
        live.reach(net.far, ROUTER4)
        live.reach(net.far, ROUTER6)
        yield Place(lab, net)


@dataclass(frozen=True)
class Device:
    """A vxlan device of the router, and the tunnel that leads to it."""

    name: str
    tunnel: str


@pytest.fixture
def devices(place: Place) -> Iterator[list[Device]]:
    """Give the router a vxlan device over IPv4 and one over IPv6, which say nothing themselves."""
    lab, router = place.lab, place.net.router
    lab.setting(router, "net/ipv6/conf/default/disable_ipv6", "1")
    made = []
    try:
        for number, local in enumerate((ROUTER4, ROUTER6)):
            name, vni, port = f"vx{number}", VNI + number, 4789 + number
            lab.command(
                "ip", "-n", router, "link", "add", name, "mtu", "1500", "type", "vxlan",
                "id", str(vni), "dstport", str(port), "local", local, "nolearning",
            )  # fmt: skip
            made.append(Device(name, f"vxlan://{remote(local)}:{port}?vni={vni}"))
            lab.command("ip", "-n", router, "link", "set", name, "up")
        yield made
    finally:
        lab.setting(router, "net/ipv6/conf/default/disable_ipv6", "0")
        for device in made:
            lab.command("ip", "-n", router, "link", "delete", device.name, check=False)


def record(place: Place, device: Device) -> tuple[Process, Path]:
    """Capture what comes out of a device."""
    label = f"{device.name}-{next(_recordings)}"
    return truth.capture(place.lab, label, place.net.router, device.name)


def erspan3(frames: Sequence[bytes], session: int) -> list[bytes]:
    """Return ERSPAN III as scapy makes it, from behind the outer IP header."""
    from scapy.contrib.erspan import ERSPAN_III
    from scapy.layers.inet import GRE
    from scapy.packet import Raw

    return [
        bytes(
            GRE(proto=0x22EB, seqnum_present=1, seqence_number=number)
            / ERSPAN_III(ver=2, session_id=session)
            / Raw(frame)
        )
        for number, frame in enumerate(frames)
    ]


def send_raw(namespace: str, to: str, protocol: int, payloads: Sequence[bytes]) -> None:
    """Send what follows the outer IP header."""

    def work() -> None:
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
            for payload in payloads:
                sock.sendto(payload, (to, 0))

    inside(namespace, work)


def assert_delivered(ledger: dict[str, object], count: int) -> None:
    """Assert that every sink delivered everything and all sums balance."""
    assert ledger["balanced"], ledger
    assert ledger["decapsulated"] == count
    assert ledger["rejected"] == {}
    assert ledger["socket_dropped"] == 0
    for sink in ledger["sinks"]:
        assert (sink["delivered"], sink["dropped"]) == (count, {}), sink
        assert sum(each["delivered"] for each in sink.get("to", [sink])) == count


@pytest.mark.parametrize("number", [0, 1], ids=["to-ipv4", "to-ipv6"])
@pytest.mark.parametrize("far", [FAR4, FAR6], ids=["ipv4", "ipv6"])
def test_erspan3_in_vxlan_out_of_the_kernels_device(
    place: Place, devices: list[Device], far: str, number: int
) -> None:
    lab, net, device = place.lab, place.net, devices[number]
    recorder, out = record(place, device)
    collector = live.listen(lab, net.far, "--gre", "--forward", device.tunnel)
    frames = live.corpus()

    send_raw(net.host, far, 47, erspan3(frames, 5))
    got = live.collected(out, len(frames))
    ledger = collector.end()
    recorder.stop()

    live.assert_same(as_frames(frames), got)
    assert_delivered(ledger, len(frames))
    (sink,) = ledger["sinks"]
    assert sink["name"] == f"forward {device.tunnel}"
    assert sink["octets"] == sum(map(len, frames))


def test_every_tunnel_gets_all_beside_other_sinks(place: Place, devices: list[Device]) -> None:
    lab, net = place.lab, place.net
    recorders = [record(place, device) for device in devices]
    pcap = lab.folder / "beside.pcap"
    collector = live.listen(
        lab, net.far, "--gre", "--pcap", str(pcap), "--forward-by", "all",
        *(word for device in devices for word in ("--forward", device.tunnel)),
    )  # fmt: skip
    frames = live.corpus()
    send_raw(net.host, FAR4, 47, erspan3(frames, 5))
    got = [live.collected(out, len(frames)) for _, out in recorders]
    ledger = collector.end()
    for recorder, _ in recorders:
        recorder.stop()

    for each in (*got, live.compare.read(pcap)):
        live.assert_same(as_frames(frames), each)
    assert len(ledger["sinks"]) == 3
    assert_delivered(ledger, len(frames))


def conversations(count: int) -> list[tuple[bytes, bytes]]:
    """Return TCP connections with one frame in each direction, as scapy makes them."""
    from scapy.layers.inet import IP, TCP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import Ether

    pairs = []
    for number in range(count):
        make, a, b = (IPv6, f"2001:db8:1::{number:x}", "2001:db8:2::1") if number % 2 else (
            IP, f"10.0.0.{number}", "10.9.0.1")  # fmt: skip
        there = Ether(**MACS) / make(src=a, dst=b) / TCP(sport=40000 + number, dport=443)
        back = Ether(**MACS) / make(src=b, dst=a) / TCP(sport=443, dport=40000 + number, flags="SA")
        pairs.append((bytes(there), bytes(back)))
    return pairs


def test_both_directions_of_a_flow_come_out_of_one_device(
    place: Place, devices: list[Device]
) -> None:
    lab, net = place.lab, place.net
    recorders = [record(place, device) for device in devices]
    collector = live.listen(
        lab, net.far, "--gre", "--forward-by", "flow",
        *(word for device in devices for word in ("--forward", device.tunnel)),
    )  # fmt: skip
    pairs = conversations(60)
    frames = [frame for pair in pairs for frame in pair]
    send_raw(net.host, FAR4, 47, erspan3([there for there, _ in pairs], 1))
    send_raw(net.host, FAR4, 47, erspan3([back for _, back in pairs], 2))

    def share(number: int) -> list[live.compare.Frame]:
        wanted = wait_for_shares(collector, len(frames))[number]
        return live.collected(recorders[number][1], wanted)

    got = [share(0), share(1)]
    ledger = collector.end()
    for recorder, _ in recorders:
        recorder.stop()

    live.assert_same(as_frames(frames), [frame for each in got for frame in each])
    at = [{frame.octets for frame in each} for each in got]
    assert all(len(each) > 20 for each in at)
    for there, back in pairs:
        assert (there in at[0]) == (back in at[0])
    assert_delivered(ledger, len(frames))


def wait_for_shares(collector: Program, count: int) -> list[int]:
    """Return how many frames each far end got, once all are delivered."""
    found: list[int] = []

    def enough() -> bool:
        (sink,) = collector.ask()["sinks"]
        found[:] = [each["delivered"] for each in sink["to"]]
        return sum(found) >= count

    live.wait_until(enough, 5, f"{count} frames forwarded", every=0.02)
    return found


@contextlib.contextmanager
def back_ends(net: Net, *ports: int) -> Iterator[list[socket.socket]]:
    """Listen to UDP ports on the router, and to GRE."""
    with contextlib.ExitStack() as opening:
        sockets = []
        for port in ports:
            sock = inside(net.router, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
            sockets.append(opening.enter_context(sock))
            sock.bind((ROUTER4, port))
            sock.setblocking(False)
        raw = inside(net.router, socket.socket, socket.AF_INET, socket.SOCK_RAW, 47)
        sockets.append(opening.enter_context(raw))
        raw.bind((ROUTER4, 0))
        raw.setblocking(False)
        yield sockets


def take(sock: socket.socket, into: list[tuple[bytes, int]]) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            octets, source = sock.recvfrom(65535)
            into.append((octets, source[1]))


def test_a_load_balancer_in_front_of_collectors(place: Place) -> None:
    lab, net = place.lab, place.net
    pairs = conversations(100)
    header = struct.pack(">II", 0x0800_0000, 7 << 8)
    payloads = [[header + frame for frame in pair] for pair in pairs]
    gre = erspan3([there for there, _ in pairs[:20]], 3)
    options = [f"{ROUTER4}:5001", f"{ROUTER4}:5002?weight=2", ROUTER4]
    collector = live.listen(
        lab, net.far, "--vxlan", "4789", "--gre",
        *(word for option in options for word in ("--forward-raw", option)),
    )  # fmt: skip
    ports: dict[bytes, int] = {}

    def send_udp() -> None:
        for number, pair in enumerate(payloads):
            for payload in pair:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.bind((HOST4, 20000 + number))
                    sock.sendto(payload, (FAR4, 4789))
                ports[payload] = 20000 + number

    got: list[list[tuple[bytes, int]]] = [[], [], [], []]
    with back_ends(net, 5001, 5002, 4789) as sockets:
        inside(net.host, send_udp)
        send_raw(net.host, FAR4, 47, gre)

        def all_came() -> bool:
            for sock, into in zip(sockets, got, strict=True):
                take(sock, into)
            return sum(map(len, got)) >= 220

        live.wait_until(all_came, 8, "220 datagrams at the back ends", every=0.02)
    ledger = collector.end()

    assert Counter(each for back_end in got[:3] for each in back_end) == Counter(ports.items())
    assert Counter(octets[20:] for octets, _ in got[3]) == Counter(gre)
    at = [{octets for octets, _ in back_end} for back_end in got[:3]]
    for there, back in payloads:
        assert [there in each for each in at] == [back in each for each in at]
    assert len(at[1]) > len(at[0]) > 20
    assert_delivered(ledger, 220)
    shares = {each["name"]: each["delivered"] for each in ledger["sinks"][0]["to"]}
    assert shares[f"{ROUTER4}:5001"] >= len(got[0])


def test_collectors_behind_it_deliver_what_came_in(place: Place) -> None:
    """Two of our collectors behind the balancer: together they have every frame once."""
    lab, net = place.lab, place.net
    pcaps = [lab.folder / f"behind{number}.pcap" for number in range(2)]
    behind = [
        live.listen(lab, net.router, "--vxlan", str(port), "--bind", ROUTER4, "--pcap", str(pcap))
        for port, pcap in zip((5001, 5002), pcaps, strict=True)
    ]
    front = live.listen(
        lab, net.far, "--vxlan", "4789",
        "--forward-raw", f"{ROUTER4}:5001", "--forward-raw", f"{ROUTER4}:5002",
    )  # fmt: skip
    frames = [frame for pair in conversations(80) for frame in pair]
    capture = live.write_pcap(lab.folder / "pairs.pcap", frames)
    live.send(lab, net.host, "-r", str(capture), "--to", f"vxlan://{FAR4}?vni=3").wait()
    shares = wait_for_shares(front, len(frames))
    got = [live.collected(pcap, share) for pcap, share in zip(pcaps, shares, strict=True)]
    assert_delivered(front.end(), len(frames))
    for each, share in zip(behind, shares, strict=True):
        assert each.end()["decapsulated"] == share

    live.assert_same(as_frames(frames), [frame for each in got for frame in each])


@pytest.mark.parametrize("option", ["--forward", "--forward-raw"])
def test_a_congested_path_costs_the_other_sinks_nothing(place: Place, option: str) -> None:
    lab, net = place.lab, place.net
    pcap = lab.folder / f"beside{option}.pcap"
    to = f"vxlan://{ROUTER4}" if option == "--forward" else ROUTER4
    collector = live.listen(
        lab, net.far, "--vxlan", "4789", "--pcap", str(pcap), option, f"{to}?queue=50k"
    )
    count = 3000
    frames = [frame for frame in live.corpus() if len(frame) > 1000][:1]
    header = struct.pack(">II", 0x0800_0000, 7 << 8)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number in range(count):
                sock.sendto(header + frames[0][:1000] + number.to_bytes(4), (FAR4, 4789))

    slow = ("rate", "400kbit", "burst", "3000", "limit", "100m")
    lab.command("tc", "-n", net.far, "qdisc", "add", "dev", "eth0", "root", "tbf", *slow)
    try:
        inside(net.host, send)
        got = live.collected(pcap, count)
    finally:
        lab.command("tc", "-n", net.far, "qdisc", "delete", "dev", "eth0", "root")
    ledger = collector.end()

    assert len(set(got)) == count
    assert ledger["balanced"]
    (written, sent) = sorted(ledger["sinks"], key=lambda sink: sink["name"], reverse=True)
    assert (written["delivered"], written["dropped"]) == (count, {})
    assert sent["dropped"].keys() == {"queue-full"}
    assert sent["delivered"] + sent["dropped"]["queue-full"] == count


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--forward", f"vxlan://{FAR4}"), "leads back to this collector"),
        (("--forward", f"gre://{remote(FAR6)}"), "leads back to this collector"),
        (("--forward-raw", f"{FAR4}:4789"), "leads back to this collector"),
        (("--forward", "vxlan://203.0.113.9?nonsense=1"), "no option nonsense"),
        (("--forward-by", "flow"), "add --forward"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_start(
    place: Place, options: tuple[str, ...], told: str
) -> None:
    process = place.lab.start("refused", [*live.LISTEN, *options], place.net.far)
    assert process.wait(10) == 2
    assert told in process.last_words()


def test_forwarding_to_another_port_of_this_host_is_no_loop(place: Place) -> None:
    lab, net = place.lab, place.net
    pcap = lab.folder / "own.pcap"
    last = live.listen(lab, net.far, "--geneve", "6099", "--pcap", str(pcap))
    first = live.listen(lab, net.far, "--gre", "--forward", f"geneve://{FAR4}:6099?vni=8")
    frames = live.corpus()
    send_raw(net.host, FAR4, 47, erspan3(frames, 5))
    got = live.collected(pcap, len(frames))
    assert_delivered(first.end(), len(frames))
    ledger = last.end()
    live.assert_same(as_frames(frames), got)
    assert [each["identifier"] for each in ledger["streams"]] == [8]
