"""Filters: tcpdump says what an expression compiles to, the kernel what a program lets through."""

from __future__ import annotations

import functools
import itertools
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

import lab
from lab import need
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux import libc, libpcap
from tunnelbridge.linux.libpcap import compile_filter, refuse_marked

EXPRESSIONS = [
    "tcp",
    "tcp port 80 or udp portrange 5000-5010",
    "host 10.1.2.3 and not icmp",
    "ip6 and net 2001:db8::/32",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "ether host 02:00:00:00:00:01 or arp",
    "vlan 5",
    "vlan and tcp port 443",
    "len > 1000",
]
MARKED = 0x1234


def decimal(program: libc.Program) -> str:
    """Write a program as ``tcpdump -ddd`` does."""
    return "\n".join([str(len(program)), *(" ".join(map(str, step)) for step in program.tolist())])


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_dead_programs_equal_tcpdump(expression: str, tmp_path: Path) -> None:
    need("tcpdump")
    file = tmp_path / "empty.pcap"
    file.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1))
    assert decimal(compile_filter(expression)) == _tcpdump("-r", str(file), expression)


def test_dead_programs_of_another_link_type(tmp_path: Path) -> None:
    need("tcpdump")
    file = tmp_path / "raw.pcap"
    file.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 101))
    assert decimal(compile_filter("udp", linktype=101)) == _tcpdump("-r", str(file), "udp")


@pytest.fixture(scope="module")
def pair(root: None) -> Iterator[tuple[str, str, str]]:
    with lab.namespace() as ns, lab.veth(ns, ns) as (near, far):
        yield ns, near, far


@pytest.mark.parametrize("expression", [*EXPRESSIONS, "inbound", "outbound and udp"])
def test_live_programs_equal_tcpdump(pair: tuple[str, str, str], expression: str) -> None:
    need("tcpdump")
    ns, near, _ = pair
    program = lab.in_namespace(ns, compile_filter, expression, near)
    expected = lab.run("tcpdump", "-i", near, "-s", "262144", "-ddd", expression, ns=ns)
    assert decimal(program) == expected.strip()


def test_an_interface_that_is_down_gets_the_same_program(root: None) -> None:
    with lab.namespace() as ns, lab.veth(ns, ns) as (near, _):
        up = lab.in_namespace(ns, compile_filter, "vlan 5", near)
        lab.run("ip", "-n", ns, "link", "set", near, "down")
        assert decimal(lab.in_namespace(ns, compile_filter, "vlan 5", near)) == decimal(up)
        lab.run("ip", "-n", ns, "link", "set", "lo", "down")
        with pytest.raises(UserError, match=f"{near} is down: ip link set {near} up"):
            lab.in_namespace(ns, compile_filter, "vlan 5", near)


def _tcpdump(*arguments: str) -> str:
    done = subprocess.run(["tcpdump", "-ddd", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@contextmanager
def listening(ns: str, interface: str, program: libc.Program) -> Iterator[socket.socket]:
    """A packet socket with ``program``, judged by what it then receives."""

    def start() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        libc.attach_filter(sock.fileno(), program)
        sock.bind((interface, 3))
        sock.setblocking(False)
        return sock

    with closing(lab.in_namespace(ns, start)) as sock:
        yield sock


def send(ns: str, interface: str, frame: bytes, mark: int = 0) -> None:
    def work() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.setsockopt(socket.SOL_SOCKET, libc.SO_MARK, mark)
            sock.bind((interface, 0))
            sock.send(frame)

    lab.in_namespace(ns, work)


def heard(sock: socket.socket) -> list[bytes]:
    """What has arrived; a veth delivers before send() returns or a soft interrupt later."""
    frames = [lab.until(functools.partial(_receive, sock), what="the last frame")]
    while frames[-1][12:14] != LAST[12:14]:
        frames.append(lab.until(functools.partial(_receive, sock), what="the last frame"))
    return frames[:-1]


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except BlockingIOError:
        return b""


ADDRESSES = bytes.fromhex("02000000000b 02000000000a")
PLAIN = ADDRESSES + bytes.fromhex("88b5") + bytes(46)
TAGGED = ADDRESSES + bytes.fromhex("8100 0005 88b5") + bytes(46)
LAST = ADDRESSES + bytes.fromhex("88b6") + bytes(46)


def test_vlan_matches_tagged_frames_only_when_compiled_live(pair: tuple[str, str, str]) -> None:
    ns, near, far = pair
    last = "ether proto 0x88b6"
    live = lab.in_namespace(ns, compile_filter, f"{last} or vlan 5", near)
    dead = compile_filter(f"{last} or vlan 5")
    with listening(ns, near, live) as by_live, listening(ns, near, dead) as by_dead:
        for frame in (PLAIN, TAGGED, LAST):
            send(ns, far, frame)
        assert heard(by_live) == [ADDRESSES + TAGGED[16:]]  # the kernel took the tag out
        assert heard(by_dead) == []


@pytest.mark.parametrize("direction", ["both", "in", "out"])
def test_marked_packets_and_the_other_direction_are_refused(
    pair: tuple[str, str, str], direction: str
) -> None:
    ns, near, far = pair
    program = compile_filter("not ether proto 0x1234")  # jumps of its own
    program = refuse_marked(program, MARKED, direction)
    number = itertools.count()
    frames = {
        (end, mark): PLAIN + bytes([next(number)])
        for end in (near, far)
        for mark in (0, MARKED, MARKED + 1)
    }
    with listening(ns, near, program) as sock:
        for (end, mark), frame in frames.items():
            send(ns, end, frame, mark)
        refused = ADDRESSES + bytes.fromhex("1234") + bytes(46)
        for end in (near, far):
            send(ns, end, refused)
            send(ns, end, LAST)
        expected = [
            frame
            for (end, mark), frame in frames.items()
            if not (end == near and mark == MARKED)
            and not (direction == "in" and end == near)
            and not (direction == "out" and end == far)
        ]
        # a veth between two interfaces of one namespace hands the mark over; a wire would not
        expected = [f for f in expected if f != frames[far, MARKED]]
        seen = heard(sock)
        assert [f for f in seen if f != LAST] == expected


def test_the_default_mark_is_that_of_our_tunnels() -> None:
    program = refuse_marked(compile_filter(""))
    assert program.tolist() == [
        (0x20, 0, 0, 0xFFFFF014), (0x15, 0, 1, libc.TUNNEL_MARK), (6, 0, 0, 0), (6, 0, 0, 262144),
    ]  # fmt: skip


@pytest.mark.parametrize("expression", ["", "  ", "\n"])
def test_no_expression_accepts_everything(expression: str) -> None:
    program = compile_filter(expression)
    assert program.dtype == libc.BPF_INSTRUCTION
    assert program.tolist() == [(6, 0, 0, 262144)]


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("tcp prot 80", 'syntax error near "prot"'),
        ("tcp port 80 80", 'syntax error near "80"'),
        ("port 1 andd port 2", 'syntax error near "andd"'),
        ("tcp)", 'syntax error near ")"'),
        ("@", 'syntax error near "@"'),
        ("tcp[tcpflags] & (tcp-syn|tcp-fin) != 0 foo", 'syntax error near "foo"'),
        ("ether host 02:00:00:00:00:01 and tcp pork 1", 'syntax error near "pork"'),
        ("(tcp and (udp or nonsense))", 'syntax error near "nonsense"'),
        ("net 10.0.0.0 mask 255.0.0.0 mask", 'syntax error near "mask"'),
        ("tcp and", "syntax error: it ends too early"),
        ("(tcp", "syntax error: it ends too early"),
        ("tcp[0", "syntax error: it ends too early"),
        ("host", "syntax error: it ends too early"),
        ("vlan 99999", "VLAN tag 99999 greater than maximum 4095"),
        ("host 300.1.1.1", "invalid IPv4 address '300.1.1.1'"),
        ("tcp and udp", "expression rejects all packets"),
    ],
)
def test_a_wrong_expression_is_told_where(expression: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        compile_filter(expression)
    assert str(caught.value) == f'filter "{expression}": {complaint}'


def test_what_no_kernel_would_take() -> None:
    with pytest.raises(UsageError, match="zero character"):
        compile_filter("tcp\0 nonsense")


@pytest.mark.parametrize("limit", ["LONGEST_PROGRAM", "LONGEST_UNOPTIMISED"])
def test_longer_than_the_kernel_allows(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    hosts = " or ".join(f"host 10.0.0.{i}" for i in range(100))
    length = len(compile_filter(hosts))
    monkeypatch.setattr(libpcap, "LONGEST_PROGRAM", length)
    assert len(compile_filter(hosts)) == length
    monkeypatch.setattr(libpcap, limit, length - 1)
    with pytest.raises(UsageError, match=f"longer than the {libpcap.LONGEST_PROGRAM} instr"):
        compile_filter(hosts)


def test_what_the_kernel_has_room_for() -> None:
    """4096 instructions; and of loads, which it translates to many, not even those."""
    accept, nothing, load = (6, 0, 0, 1), (0, 0, 0, 0), (0x28, 0, 0, 12)
    for steps, fits in (
        ([accept], True), ([nothing] * 2000 + [accept], True), ([nothing] * 4096 + [accept], False),
        ([load] * 4000 + [accept], False),
    ):  # fmt: skip
        assert libpcap.kernel_takes(np.array(steps, libc.BPF_INSTRUCTION)) is fits


def test_from_many_threads_at_once() -> None:
    expected = [decimal(compile_filter(expression)) for expression in EXPRESSIONS]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(compile_filter, EXPRESSIONS * 20))
    assert [decimal(program) for program in results] == expected * 20


def test_no_such_interface(pair: tuple[str, str, str]) -> None:
    ns, near, far = pair
    with pytest.raises(UserError) as caught:
        lab.in_namespace(ns, compile_filter, "tcp", "eth77")
    there = ", ".join(sorted(["lo", near, far]))
    assert str(caught.value) == f"no interface named eth77 (there are: {there})"


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    libpcap._library.cache_clear()
    monkeypatch.setattr(libpcap.ctypes, "CDLL", missing)
    with pytest.raises(UserError, match=r"apt install libpcap0\.8"):
        compile_filter("tcp")


def test_without_the_capability(root: None) -> None:
    program = (
        "import os; from tunnelbridge.linux import libpcap\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "assert len(libpcap.compile_filter('tcp')) > 1\n"
        "try: libpcap.compile_filter('tcp', 'lo')\n"
        "except Exception as error: print(type(error).__name__, error, sep='|')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    expected = "UserError|compiling a filter for lo needs CAP_NET_RAW: run with sudo"
    assert done.stdout.startswith(expected), done.stderr


def test_handles_are_closed(pair: tuple[str, str, str]) -> None:
    ns, near, _ = pair
    compile_filter("tcp")

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    for _ in range(3):
        lab.in_namespace(ns, compile_filter, "tcp", near)
        with pytest.raises(UsageError):
            lab.in_namespace(ns, compile_filter, "tcp prot 80", near)
    assert open_files() == before


def test_programs_are_ours_to_keep() -> None:
    """The octets are copied before libpcap frees its own."""
    first = compile_filter("tcp")
    text = decimal(first)
    for expression in EXPRESSIONS:
        compile_filter(expression)
    assert decimal(first) == text
    assert isinstance(first, np.ndarray)
