"""Never a loop: whatever is mirrored, an original has at most two clones a tunnel, and it ends.

Seeds are datagrams from the host to the far end, small ones and full frames, so that clones are
fragmented. Limits of the kernel on ICMP errors are taken away: each clone to a closed port brings one.
"""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import live
import pytest
from live import (
    FAR4,
    FAR6,
    HOST4,
    MIRRORED,
    Lab,
    Net,
    compare,
    inside,
    remote,
    truth,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("root")

ENCAPSULATIONS = (
    "gre", "gre-ip", "erspan1", "erspan2", "erspan3", "vxlan", "geneve", "tzsp", "juniper",
)  # fmt: skip
ALL = [f"{name}://{remote(far)}" for name in ENCAPSULATIONS for far in (FAR4, FAR6)]
PORTS = {4789, 6081, 37008, 8099}
SEED_PORT, SEEDS = 9999, 12
NO_NOISE = ("--filter", "not arp and not icmp6")
"""Neighbours are looked up whenever they like, on links where nobody counts."""
QUIET = 0.3


@dataclass(frozen=True)
class Place:
    lab: Lab
    net: Net


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with live.routed() as (lab, net):
        for namespace in (net.host, net.router, net.far):
            lab.setting(namespace, "net/ipv4/icmp_ratelimit", "0")
            lab.setting(namespace, "net/ipv6/icmp/ratelimit", "0")
        with inside(net.far, sink):
            yield Place(lab, net)


@pytest.fixture(autouse=True)
def alone(place: Place) -> Iterator[None]:
    with live.ended(place.lab):
        yield


def sink() -> socket.socket:
    """Return the socket that seeds are for, over IPv4 and IPv6; nobody reads it."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", SEED_PORT))
    return sock


def seeds() -> list[bytes]:
    """Return payloads of datagrams, all different, every second one as long as a frame allows."""
    size = {0: 40, 1: 1452}
    return [f"seed {number:06};".encode().ljust(size[number % 2], b".") for number in range(SEEDS)]


def sow(net: Net) -> None:
    """Send the seeds from the host to the far end, over IPv4 and IPv6."""

    def work() -> None:
        for family, far in ((socket.AF_INET, FAR4), (socket.AF_INET6, FAR6)):
            with socket.socket(family, socket.SOCK_DGRAM) as sock:
                for seed in seeds():
                    sock.sendto(seed, (far, SEED_PORT))

    inside(net.host, work)


class Watch:
    """Counts what passes between host and router, and keeps it; ends a test that does not end."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._start = self.passed()
        name = f"watch{time.monotonic_ns()}"
        self._recorder, self._path = truth.capture(
            place.lab, name, place.net.router, "host0", snaplen=256
        )

    def passed(self) -> int:
        """Return how many packets have passed the router's interface towards the host, ever."""
        shown = self._place.lab.command(
            "ip", "-n", self._place.net.router, "-s", "-j", "link", "show", "dev", "host0"
        )
        counts = json.loads(shown)[0]["stats64"]
        return int(counts["rx"]["packets"]) + int(counts["tx"]["packets"])

    def settle(self, limit: int) -> None:
        """Wait until nothing passes any more; fail when more than ``limit`` packets have."""
        last, since = -1, time.monotonic()

        def quiet() -> bool:
            nonlocal last, since
            now = self.passed() - self._start
            assert now <= limit, f"{now} packets and no end"
            if now != last:
                last, since = now, time.monotonic()
            return time.monotonic() - since > QUIET

        wait_until(quiet, 10, "the path to be quiet", every=0.02)

    def originals(self, *, icmp: bool = False) -> int:
        """Return how many packets were not a tunnel's; ICMP errors count if ``icmp`` says so."""
        self._recorder.stop()
        kinds = Counter(kind_of(frame.octets) for frame in compare.read(self._path))
        return kinds["other"] + (kinds["icmp"] if icmp else 0)


def kind_of(frame: bytes) -> str:
    """Tell a tunnel's packets with their fragments, ICMP errors, and others."""
    if frame[12:14] == b"\x08\x00":
        protocol, transport = frame[23], 14 + 4 * (frame[14] & 15)
        if int.from_bytes(frame[20:22], "big") & 0x1FFF:
            return "tunnel"
        icmp = protocol == 1 and frame[transport] in (3, 11)
    elif frame[12:14] == b"\x86\xdd":
        protocol, transport = frame[20], 54
        if protocol == 44:
            return "tunnel"
        icmp = protocol == 58 and frame[transport] < 128
    else:
        return "other"
    port = int.from_bytes(frame[transport + 2 : transport + 4], "big")
    if icmp:
        return "icmp"
    return "tunnel" if protocol == 47 or (protocol == 17 and port in PORTS) else "other"


def options(tunnels: Sequence[str]) -> list[str]:
    return [option for tunnel in tunnels for option in ("--to", tunnel)]


def count_seeds(path: Path) -> Counter[bytes]:
    """Return in how many collected frames each seed is, however deep."""
    frames = compare.read(path)
    return Counter(
        {seed[:12]: sum(seed[:12] in frame.octets for frame in frames) for seed in seeds()}
    )


@pytest.mark.parametrize("collects", [True, False], ids=["collector", "closed ports"])
def test_the_interface_that_carries_the_tunnels(place: Place, collects: bool) -> None:
    lab, net = place.lab, place.net
    pcap = lab.folder / "own.pcap"
    collector = live.listen(lab, net.far, "--pcap", str(pcap)) if collects else None
    watch = Watch(place)
    sender = live.send(lab, net.host, "-i", "up0", *options(ALL))

    sow(net)
    watch.settle(limit=2 * 2 * 2 * SEEDS * (1 + 2 * len(ALL)))
    ledger = sender.end()
    originals = watch.originals()

    assert 2 * SEEDS <= ledger["cloned"] <= originals
    assert ledger["balanced"]
    for tunnel in ledger["tunnels"]:
        assert tunnel["sent"] == tunnel["clones"] <= originals
    assert any(tunnel["unreachable"] for tunnel in ledger["tunnels"]) is not collects
    if collector:
        received = collector.end()
        assert received["balanced"]
        per_seed = 2 * len(ALL)  # seeds go out over IPv4 and over IPv6
        assert count_seeds(pcap) == Counter({seed[:12]: per_seed for seed in seeds()})


def test_a_second_sender_on_the_path(place: Place) -> None:
    """Marks do not leave a host: the router must tell the first sender's tunnels by their octets."""
    lab, net = place.lab, place.net
    pcap = lab.folder / "path.pcap"
    collector = live.listen(lab, net.far, "--pcap", str(pcap))
    watch = Watch(place)
    first = live.send(lab, net.host, "-i", MIRRORED, *options(ALL))
    second = live.send(lab, net.router, "-i", "host0", "-i", "far0", *NO_NOISE, *options(ALL))

    live.inject(net.source, "eth0", live.corpus())
    sow(net)
    watch.settle(limit=4 * len(ALL) * (len(live.corpus()) + 2 * SEEDS))
    one, two = first.end(), second.end()
    originals = watch.originals()
    received = collector.end()

    assert one["balanced"]
    assert two["balanced"]
    assert received["balanced"]
    assert one["cloned"] == len(live.corpus())
    outer = sum(tunnel["sent"] + tunnel["fragmented"] for tunnel in one["tunnels"])
    assert two["refused"] == {"own-tunnel": 2 * outer}  # seen on the way in and on the way out
    assert 2 * 2 * SEEDS <= two["cloned"] <= 2 * originals
    per_seed = 2 * 2 * len(ALL)
    assert count_seeds(pcap) == Counter({seed[:12]: per_seed for seed in seeds()})


@pytest.mark.parametrize(
    ("there", "back", "collects"),
    [
        ("gre", "gre", True),
        ("gre", "gre", False),
        ("vxlan", "erspan3", True),
        ("geneve", "tzsp", False),
        ("juniper", "erspan1", False),
        ("erspan2", "gre-ip", True),
        ("vxlan", "vxlan", False),
    ],
)
def test_two_senders_towards_each_other(
    place: Place, there: str, back: str, collects: bool
) -> None:
    """Each clones the seeds, and once what the other has cloned of them."""
    lab, net = place.lab, place.net
    collectors = [live.listen(lab, each) for each in (net.host, net.far) if collects]
    watch = Watch(place)
    near = live.send(lab, net.host, "-i", "up0", *NO_NOISE, "--to", f"{there}://{FAR4}")
    far = live.send(lab, net.far, "-i", "eth0", *NO_NOISE, "--to", f"{back}://{HOST4}")

    sow(net)
    watch.settle(limit=30 * 2 * SEEDS)
    ledgers = [near.end(), far.end()]
    originals = watch.originals(icmp=True)
    for ledger in ledgers:
        assert ledger["balanced"]
        # half of the seeds are full frames, of which the other's clones are two packets each
        assert 2 * SEEDS <= ledger["cloned"] <= 2 * originals + SEEDS
    for collector in collectors:
        assert collector.end()["balanced"]


def test_what_else_the_collector_says_is_mirrored(place: Place) -> None:
    """Its web server is not hidden by its being the tunnel's end."""
    lab, net = place.lab, place.net
    pcap = lab.folder / "web.pcap"
    collector = live.listen(lab, net.far, "--gre", "--pcap", str(pcap))
    sender = live.send(lab, net.host, "-i", "up0", "--to", f"gre://{FAR4}?seq=on")
    server = inside(net.far, HTTPServer, (FAR4, 80), Page)
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()

    def get() -> bytes:
        connection = HTTPConnection(FAR4, 80, timeout=5)
        connection.request("GET", "/the-collector-itself")
        body = connection.getresponse().read()
        connection.close()
        return body

    assert inside(net.host, get) == b"I collect"
    wait_until(lambda: compare.holds(compare.read(pcap), b"I collect"), 5, "the answer's clone")
    server.shutdown()
    thread.join()
    server.server_close()
    sent, received = sender.end(), collector.end()

    frames = compare.read(pcap)
    (request,) = [frame for frame in frames if b"GET /the-collector-itself" in frame.octets]
    assert request.octets[23] == 6
    live.assert_nothing_lost(sent, received)


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"I collect")

    def log_message(self, *_: object) -> None:
        """Say nothing on the terminal."""
