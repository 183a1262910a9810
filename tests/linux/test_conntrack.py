"""Connection tracking on a host that translates sources; its client side and conntrack(8) judge."""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

import lab
from tunnelbridge.batch import Batch
from tunnelbridge.clone.nat import GRACE, NatTable, with_echoes
from tunnelbridge.connections import ECHO_SERVICE, Changes, Connections
from tunnelbridge.errors import UserError
from tunnelbridge.linux import conntrack, libc
from tunnelbridge.linux.conntrack import ConntrackFeed
from tunnelbridge.linux.ring import Ring
from tunnelbridge.restore.readdress import readdress
from tunnelbridge.restore.restore import restore
from tunnelbridge.wire.five_tuple import read_five_tuples
from tunnelbridge.wire.flow import read_flows

pytestmark = pytest.mark.usefixtures("root")

ACCEPT_ALL = np.array([(0x06, 0, 0, 262144)], libc.BPF_INSTRUCTION)
CLIENT = {4: "10.1.0.2", 6: "fd01::2"}
OTHER_CLIENT = {4: "10.1.0.3", 6: "fd01::3"}
NAT = {4: "10.2.0.1", 6: "fd02::1"}
SERVER = {4: "10.2.0.2", 6: "fd02::2"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
RULES = """
table inet translate {{
    chain out {{
        type nat hook postrouting priority 100;
        oifname {outer} masquerade
    }}
}}
"""


class Hosts(NamedTuple):
    """A client, a host that translates its address, a server; and that host's two interfaces."""

    client: str
    nat: str
    server: str
    inner: str
    outer: str


@pytest.fixture(scope="module")
def hosts(root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    lab.need("nft", "conntrack")
    with (
        lab.namespace(ipv6=True) as client,
        lab.namespace(ipv6=True) as nat,
        lab.namespace(ipv6=True) as server,
        lab.veth(client, nat, "10.1.0.2/24", "10.1.0.1/24") as (near, inner),
        lab.veth(nat, server, "10.2.0.1/24", "10.2.0.2/24") as (outer, far),
    ):
        for ns, end, *addresses in (
            (client, near, "10.1.0.3/24", "fd01::2/64", "fd01::3/64"),
            (nat, inner, "fd01::1/64"),
            (nat, outer, "fd02::1/64"),
            (server, far, "fd02::2/64"),
        ):
            for address in addresses:
                nodad = ("nodad",) if ":" in address else ()
                lab.run("ip", "-n", ns, "address", "add", address, "dev", end, *nodad)
        lab.run("ip", "-n", client, "route", "add", "default", "via", "10.1.0.1")
        lab.run("ip", "-n", client, "route", "add", "default", "via", "fd01::1")
        lab.in_namespace(nat, _forward)
        rules = tmp_path_factory.mktemp("nft") / "rules"
        rules.write_text(RULES.format(outer=outer))
        lab.run("nft", "-f", str(rules), ns=nat)
        yield Hosts(client, nat, server, inner, outer)


def _forward() -> None:
    for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path(f"/proc/sys/net/{setting}").write_text("1")


@pytest.fixture(autouse=True)
def _no_connections(request: pytest.FixtureRequest) -> None:
    if "hosts" in request.fixturenames:
        flush(request.getfixturevalue("hosts"))


def flush(hosts: Hosts) -> None:
    lab.run("conntrack", "-F", ns=hosts.nat)


def endpoint(
    ns: str, version: int, kind: socket.SocketKind, address: str, port: int = 0
) -> socket.socket:
    def bound() -> socket.socket:
        sock = socket.socket(FAMILY[version], kind)
        sock.settimeout(5)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        return sock

    return lab.in_namespace(ns, bound)


# --- what the sender does with it ---------------------------------------------------------------


class Taps:
    """Captures on both sides of the translating host; undoes the translation on the outer side."""

    def __init__(self, hosts: Hosts) -> None:
        with ExitStack() as stack:
            self._rings = {
                name: stack.enter_context(closing(lab.in_namespace(hosts.nat, _ring, name)))
                for name in (hosts.inner, hosts.outer)
            }
            self.feed = stack.enter_context(ConntrackFeed(hosts.nat))
            self._stack = stack.pop_all()
        self.table = NatTable()
        self._hosts = hosts
        self.inner: list[bytes] = []
        self.outer: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self) -> None:
        for name, ring in self._rings.items():
            while (batch := ring.read()) is not None:
                self.table.apply(self.feed.read(), time.monotonic_ns())
                if name == self._hosts.outer:
                    self.outer += packets(undo(batch, self.table))
                else:
                    self.inner += packets(restore(batch).batch)
                ring.release()

    def until(self, done: Callable[[], bool], what: str) -> None:
        def read_and_look() -> bool:
            self.read()
            return done()

        lab.until(read_and_look, what=what)

    def agree_on(self, count: int) -> list[Packet]:
        """Wait for ``count`` packets on both sides, the same but for the hop between them."""
        self.until(
            lambda: len(self.inner) >= count and len(self.outer) >= count,
            f"{count} packets on both sides",
        )
        outer = [without_checksum_errors(packet) for packet in self.outer]
        assert sorted(map(without_hop, outer)) == sorted(
            without_hop(parsed(packet)) for packet in self.inner
        )
        return outer


def _ring(interface: str) -> Ring:
    return Ring(interface, program=ACCEPT_ALL, block_size=1 << 17, blocks=16)


def undo(batch: Batch, table: NatTable) -> Batch:
    """Put the clients' addresses back, as a sender with preserve_client_ip does."""
    flows = read_flows(batch.memory, batch.start, batch.start + batch.length)
    tuples = with_echoes(batch.memory, flows, read_five_tuples(batch.memory, flows))
    new = table.look_up(tuples)
    restored = restore(batch)
    header_length = (flows.payload - flows.start)[restored.index]
    ethertype = flows.ethertype[restored.index]
    return readdress(restored.batch, header_length, ethertype, new.follow(restored.index))


def packets(batch: Batch) -> list[bytes]:
    """Return the IP packets of tests, without the neighbours' talk."""
    frames = [batch.octets(row) for row in range(len(batch))]
    return [frame[14:] for frame in frames if _is_of_tests(Ether(frame))]


def _is_of_tests(frame: Packet) -> bool:
    return any(layer in frame for layer in (TCP, UDP, ICMP, ICMPv6EchoRequest, ICMPv6EchoReply))


def parsed(packet: bytes) -> Packet:
    return (IP if packet[0] >> 4 == 4 else IPv6)(packet)


def without_checksum_errors(octets: bytes) -> Packet:
    """Parse a packet whose checksums are those that scapy computes from scratch."""
    packet = parsed(octets)
    fresh = packet.copy()
    for layer in (IP, TCP, UDP, ICMP):
        if layer in fresh:
            del fresh[layer].chksum
    for layer in (ICMPv6EchoRequest, ICMPv6EchoReply):
        if layer in fresh:
            del fresh[layer].cksum
    assert bytes(fresh) == octets
    return packet


def without_hop(packet: Packet) -> bytes:
    """Return the packet with what forwarding changes set to zero."""
    packet = packet.copy()
    if IP in packet:
        packet.ttl = packet.chksum = 0
    else:
        packet.hlim = 0
    return bytes(packet)


def ends(packet: Packet) -> tuple[str, str]:
    return packet.src, packet.dst


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_shows_the_client_from_its_first_syn(hosts: Hosts, version: int) -> None:
    server = endpoint(hosts.server, version, socket.SOCK_STREAM, SERVER[version], 8080)
    client = endpoint(hosts.client, version, socket.SOCK_STREAM, CLIENT[version], 40000)
    with Taps(hosts) as taps, server, client:
        server.listen()
        client.connect((SERVER[version], 8080))
        accepted, peer = server.accept()
        with accepted:
            assert peer[0] == NAT[version]
            client.sendall(b"question")
            assert accepted.recv(100) == b"question"
            accepted.sendall(b"answer" * 1000)
            received = b""
            while len(received) < 6000:
                received += client.recv(10_000)
            client.shutdown(socket.SHUT_WR)
            assert accepted.recv(100) == b""
        assert client.recv(100) == b""
        taps.until(
            lambda: all(
                sum("F" in parsed(packet)[TCP].flags for packet in side) == 2
                and parsed(side[-1])[TCP].flags == "A"
                for side in (taps.inner, taps.outer)
            ),
            "the end of the connection",
        )
        outer = taps.agree_on(10)

    assert outer[0][TCP].flags == "S"
    there, back = (CLIENT[version], SERVER[version]), (SERVER[version], CLIENT[version])
    assert {ends(packet) for packet in outer} == {there, back}
    assert (
        b"".join(
            bytes(packet[TCP].payload)[: len(packet) - 40 if version == 4 else None]
            for packet in outer
            if ends(packet) == back
        ).count(b"answer")
        == 1000
    )


@pytest.mark.parametrize("version", [4, 6])
def test_a_refused_connection_shows_the_client_too(hosts: Hosts, version: int) -> None:
    client = endpoint(hosts.client, version, socket.SOCK_STREAM, CLIENT[version])
    with Taps(hosts) as taps, client:
        with pytest.raises(ConnectionRefusedError):
            client.connect((SERVER[version], 1))
        assert not listed(hosts), "the kernel forgets it with the answer"
        outer = taps.agree_on(2)

    assert [packet[TCP].flags for packet in outer] == ["S", "RA"]


@pytest.mark.parametrize("version", [4, 6])
def test_ports_that_had_to_change_are_the_clients_again(hosts: Hosts, version: int) -> None:
    kind = socket.SOCK_DGRAM
    server = endpoint(hosts.server, version, kind, SERVER[version], 5353)
    one = endpoint(hosts.client, version, kind, CLIENT[version], 41000)
    other = endpoint(hosts.client, version, kind, OTHER_CLIENT[version], 41000)
    with Taps(hosts) as taps, server, one, other:
        ports = set()
        for sock in (one, other):
            sock.sendto(b"question", (SERVER[version], 5353))
            _, peer = server.recvfrom(100)
            ports.add(peer[1])
            server.sendto(b"answer", peer)
            assert sock.recv(100) == b"answer"
        outer = taps.agree_on(4)

    assert len(ports) == 2, "the second client's port had to change"
    assert [(*ends(packet), packet[UDP].sport, packet[UDP].dport) for packet in outer] == [
        (CLIENT[version], SERVER[version], 41000, 5353),
        (SERVER[version], CLIENT[version], 5353, 41000),
        (OTHER_CLIENT[version], SERVER[version], 41000, 5353),
        (SERVER[version], OTHER_CLIENT[version], 5353, 41000),
    ]


@pytest.mark.parametrize("version", [4, 6])
def test_pings_with_one_identifier_from_two_clients(hosts: Hosts, version: int) -> None:
    lab.need("ping")
    with Taps(hosts) as taps:
        for address in (CLIENT[version], OTHER_CLIENT[version]):
            lab.run("ping", "-c", "1", "-e", "77", "-I", address, SERVER[version], ns=hosts.client)
        outer = taps.agree_on(4)

    there = [(address[version], SERVER[version]) for address in (CLIENT, OTHER_CLIENT)]
    assert [ends(packet) for packet in outer] == [
        there[0], there[0][::-1], there[1], there[1][::-1],
    ]  # fmt: skip
    assert {packet[ICMP].id if version == 4 else packet.payload.id for packet in outer} == {77}


# --- the feed, judged by conntrack(8) -----------------------------------------------------------


def read_all(feed: ConntrackFeed, table: NatTable) -> list[Changes]:
    """Read and apply until everything has been told."""
    changes = [feed.read()]
    table.apply(changes[-1], 0)
    while not changes[-1].complete:
        changes.append(feed.read())
        table.apply(changes[-1], 0)
    return changes


Row = tuple[str, str, int, str, int, str, int]


def told(*columns: Connections) -> set[Row]:
    """Return protocol, then address and port of server, NAT host and client."""
    found = set()
    for one in np.concatenate(columns):
        addresses = (_address(one["family"], one[name]) for name in ("server", "nat", "client"))
        server, nat, client = addresses
        found.add((str(one["protocol"]), server, int(one["server_port"]), nat,
                   int(one["nat_port"]), client, int(one["client_port"])))  # fmt: skip
    return found


def _address(family: int, words: Any) -> str:
    number = int(words[0]) << 64 | int(words[1])
    return str(ipaddress.IPv4Address(number) if family == 4 else ipaddress.IPv6Address(number))


def listed(hosts: Hosts) -> set[Row]:
    """Return the same of what conntrack(8) lists as source-NATed."""
    found = set()
    for family in ("ipv4", "ipv6"):
        for line in lab.run(
            "conntrack", "-L", "-f", family, "--src-nat", ns=hosts.nat
        ).splitlines():
            sources, destinations = (
                re.findall(rf"\b{name}=(\S+)", line) for name in ("src", "dst")
            )
            ports = [int(port) for port in re.findall(r"\b(?:sport|dport)=(\d+)", line)]
            if ports:
                numbers = ports[2], ports[3], ports[0]
            else:
                own, translated = (int(number) for number in re.findall(r"\bid=(\d+)", line))
                numbers = ECHO_SERVICE, translated, own
            found.add((line.split()[1], sources[1], numbers[0], destinations[1], numbers[1],
                       sources[0], numbers[2]))  # fmt: skip
    return found


def talk(hosts: Hosts, count: int, first_port: int = 20000, version: int = 4) -> None:
    """Begin ``count`` connections to a server that does not answer; all have passed when it returns."""
    server = endpoint(hosts.server, version, socket.SOCK_DGRAM, SERVER[version], 9999)

    def send() -> None:
        for port in range(first_port, first_port + count):
            with socket.socket(FAMILY[version], socket.SOCK_DGRAM) as sock:
                sock.bind((CLIENT[version], port))
                sock.sendto(b"x", (SERVER[version], 9999))

    with server:
        lab.in_namespace(hosts.client, send)


def test_events_and_dumps_are_what_conntrack_lists(hosts: Hosts) -> None:
    lab.need("ping")
    with ConntrackFeed(hosts.nat) as feed, endpoint(hosts.nat, 4, socket.SOCK_DGRAM, NAT[4]) as own:
        assert not len(feed.read().known)
        for version in (4, 6):
            talk(hosts, 3, version=version)
            lab.run("ping", "-c", "1", SERVER[version], ns=hosts.client)
            server = endpoint(hosts.server, version, socket.SOCK_STREAM, SERVER[version], 8080)
            sock = endpoint(hosts.client, version, socket.SOCK_STREAM, CLIENT[version])
            with server, sock:
                server.listen()
                sock.connect((SERVER[version], 8080))
        own.sendto(b"not translated", (SERVER[4], 9998))
        events = feed.read()
        with ConntrackFeed(hosts.nat) as another:
            dump = another.read()

    expected = listed(hosts)
    assert len(expected) == 10
    assert told(events.known) == expected
    assert dump.complete
    assert told(dump.known) == expected


def test_a_thousand_short_connections_come_and_go(hosts: Hosts) -> None:
    small = NatTable(64)
    with ConntrackFeed(hosts.nat) as feed:
        table = NatTable()
        read_all(feed, table)
        talk(hosts, 1000)
        changes = feed.read()
        table.apply(changes, 0)
        small.apply(changes, 0)
        assert len(table) == 1000
        assert (len(small), small.evicted) == (64, 936)
        flush(hosts)
        talk(hosts, 10, first_port=20500)  # some of them come again
        for now in (0, GRACE):
            changes = feed.read()
            table.apply(changes, now)
            small.apply(changes, now)

        assert len(table) == 10
        assert len(small) == 10
        assert feed.lost == 0


def test_what_exists_already_is_told_piece_by_piece(hosts: Hosts) -> None:
    talk(hosts, 1000)
    with ConntrackFeed(hosts.nat) as feed:
        table = NatTable()
        changes = read_all(feed, table)

        assert told(*(one.known for one in changes)) == listed(hosts)
        assert len(table) == 1000
        assert len(changes) > 1
        assert max(len(one.known) for one in changes) < 900, "a read takes a bounded piece"


def test_events_are_told_at_once_while_a_dump_goes_on(hosts: Hosts) -> None:
    talk(hosts, 1000)
    with ConntrackFeed(hosts.nat) as feed:
        assert not feed.read().complete
        talk(hosts, 1, first_port=30000)
        assert 30000 in feed.read().known["client_port"]


def test_lost_events_are_noticed_and_made_good(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conntrack, "QUEUE", 4096)
    with ConntrackFeed(hosts.nat) as feed:
        table = NatTable()
        read_all(feed, table)
        talk(hosts, 2)
        table.apply(feed.read(), 0)
        assert len(table) == 2
        flush(hosts)
        talk(hosts, 300, first_port=30000)  # far more than the queue holds
        changes = read_all(feed, table)

        assert feed.lost == 1
        assert changes[0].restarted
        assert len(table) == 300, "all that are there, and not the two that are gone"
        assert told(*(one.known for one in changes)) == listed(hosts)


def test_events_lost_during_a_dump_are_made_good_by_another(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conntrack, "QUEUE", 1 << 16)
    talk(hosts, 2000)
    with ConntrackFeed(hosts.nat) as feed:
        table = NatTable()
        first = feed.read()
        table.apply(first, 0)
        assert not first.complete
        talk(hosts, 500, first_port=30000)
        read_all(feed, table)
        assert feed.lost == 1
        read_all(feed, table)
        assert len(table) == 2500
        assert not len(feed.read().known)


def test_a_refresh_finds_what_went_untold(hosts: Hosts) -> None:
    talk(hosts, 5)  # nobody listens: the kernel will not tell of their end
    with ConntrackFeed(hosts.nat) as feed:
        table = NatTable()
        read_all(feed, table)
        assert len(table) == 5
        flush(hosts)
        feed.refresh()
        read_all(feed, table)
        assert len(table) == 0


def test_a_connection_that_is_dumped_while_it_dies_is_not_known(hosts: Hosts) -> None:
    with ConntrackFeed(hosts.nat) as feed:
        feed.read()
        talk(hosts, 1)
        message = feed._sock.recv(4096)
    status = message.index(struct.pack("=HH", 8, conntrack.STATUS)) + 4
    dying = struct.unpack_from(">I", message, status)[0] | conntrack.DYING
    told_alive, told_dying = conntrack._Told(), conntrack._Told()
    conntrack._read_messages(message, told_alive)
    conntrack._read_messages(
        message[:status] + struct.pack(">I", dying) + message[status + 4 :], told_dying
    )
    assert len(told_alive.known) == 1
    assert not told_dying.known
    for size in range(len(message)):  # nothing is raised whatever a kernel leaves out
        conntrack._read_messages(message[:size], conntrack._Told())


def test_an_empty_feed_costs_little(hosts: Hosts) -> None:
    with ConntrackFeed(hosts.nat) as feed:
        read_all(feed, NatTable())
        best = min(_seconds(feed.read) for _ in range(200))
        assert best < 200e-6


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


# --- what users are told ------------------------------------------------------------------------


def test_without_the_right_it_says_which() -> None:
    with lab.namespace() as ns:

        def open_without_rights() -> None:
            libc_capset()
            conntrack._open()

        with pytest.raises(
            UserError, match=r"connection tracking needs CAP_NET_ADMIN: run with sudo"
        ):
            lab.in_namespace(ns, open_without_rights)


def libc_capset() -> None:
    """Give up the calling thread's capabilities (capset(2))."""
    header = struct.pack("=II", 0x20080522, 0)
    assert libc._libc.capset(header, bytes(24)) == 0


def test_a_kernel_without_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack, "SUBSYSTEM", 63)  # as the kernel answers where it has none
    with lab.namespace() as ns, pytest.raises(UserError, match=r"cannot be followed .*modprobe"):
        ConntrackFeed(ns)


def test_a_kernel_that_is_set_to_tell_nothing_is_told() -> None:
    with lab.namespace() as ns:
        lab.run("sysctl", "-qw", "net.netfilter.nf_conntrack_events=0", ns=ns)
        with pytest.raises(UserError, match=r"sysctl net\.netfilter\.nf_conntrack_events=1"):
            ConntrackFeed(ns)


def test_nothing_stays_open() -> None:
    with lab.namespace() as ns:
        before = lab.descriptors()
        with ConntrackFeed(ns) as feed:
            assert feed.fileno() >= 0
        assert lab.left_open(before) == []
