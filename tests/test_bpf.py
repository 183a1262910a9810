"""libpcap's own interpreter is the judge: its filters over real packets, and any valid program."""

from __future__ import annotations

import ctypes
import ctypes.util
import random
import socket
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.all import (
    ARP,
    GRE,
    ICMP,
    IP,
    TCP,
    UDP,
    Dot1Q,
    Ether,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrFragment,
    Raw,
)
from scapy.contrib.mpls import MPLS
from scapy.layers.ppp import PPPoE

from tunnelbridge import bpf
from tunnelbridge.batch import INBOUND, OUTBOUND, Batch, from_packets
from tunnelbridge.linux import libc

INSTRUCTION = np.dtype([("code", "=u2"), ("jt", "=u1"), ("jf", "=u1"), ("k", "=u4")])

EXPRESSIONS = [
    "", "ip", "ip6", "arp", "tcp", "udp", "icmp", "icmp6", "not ip", "ether proto 0x88b5",
    "ether host 02:00:00:00:00:01", "ether dst 02:00:00:00:00:02", "ether multicast", "broadcast",
    "host 10.0.0.1", "src host 10.0.0.1", "dst net 10.1.0.0/16", "net 10.0.0.0/8 and not tcp",
    "host fd00::1", "src net fd00::/16", "port 53", "src port 53", "dst portrange 80-443",
    "tcp dst port 443 or udp port 4789", "ip proto 47", "ip6 proto 44", "proto gre",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "tcp[13] = 0x12", "ip[8] < 5", "ip[6:2] & 0x3fff != 0",
    "(ip[0] & 0xf) * 4 > 20", "udp[4:2] - 8 > 100", "len > 100", "less 64", "greater 1000",
    "vlan", "vlan 5", "vlan and tcp port 80", "vlan and vlan 7", "mpls", "mpls 16 and ip",
    "pppoes", "pppoes and ip", "ip[2:2] / 10 = 4", "ip[2:2] % 7 = 3", "ip[4:2] ^ ip[6:2] > 100",
    "ether[12:2] >> 8 = 8", "ether[0:4] | ether[2:4] = 0xffffffff", "tcp[2:2] << 4 > 7000",
    "ip6[6] = 6 and ip6[42:2] = 80", "ip multicast or ip6 multicast", "udp[100] = 0x41",
    "ip and (tcp port 80 or tcp port 443) and (host 10.0.0.1 or host 10.1.0.9) and not len < 60",
]  # fmt: skip


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


@cache
def libpcap() -> ctypes.CDLL | None:
    for name in (ctypes.util.find_library("pcap"), "libpcap.so.0.8", "libpcap.so.1"):
        try:
            library = ctypes.CDLL(name) if name else None
        except OSError:
            continue
        if library is not None:
            library.pcap_open_dead.restype = ctypes.c_void_p
            library.bpf_filter.restype = ctypes.c_uint
            library.bpf_filter.argtypes = [
                ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint,
            ]  # fmt: skip
            return library
    return None


def need_libpcap() -> ctypes.CDLL:
    library = libpcap()
    if library is None:
        pytest.skip("needs libpcap, which is not installed")
    return library


def compiled(expression: str) -> np.ndarray:
    library = need_libpcap()
    handle = ctypes.c_void_p(library.pcap_open_dead(1, 262144))
    program = Program()
    assert library.pcap_compile(
        handle, ctypes.byref(program), expression.encode(), 1, ctypes.c_uint32(0xFFFFFFFF)
    ) == 0, expression  # fmt: skip
    octets = ctypes.string_at(program.instructions, program.length * INSTRUCTION.itemsize)
    library.pcap_freecode(ctypes.byref(program))
    library.pcap_close(handle)
    return np.frombuffer(octets, INSTRUCTION)


def judged(program: np.ndarray, batch: Batch) -> list[int]:
    octets = program.tobytes()
    return [
        need_libpcap().bpf_filter(
            octets,
            batch.octets(index),
            int(batch.wire_length[index]),
            int(batch.total_length[index]),
        )
        for index in range(len(batch))
    ]


def code(*instructions: tuple[int, int, int, int]) -> np.ndarray:
    return np.array(list(instructions), INSTRUCTION)


def traffic() -> list[bytes]:
    ether = Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")
    v4 = IP(src="10.0.0.1", dst="10.1.0.9", id=700)
    odd = IP(src="10.2.0.1", dst="224.0.0.5", ttl=1, options=b"\x94\x04\0\0")
    v6 = IPv6(src="fd00::1", dst="fd01::9")
    all_nodes = IPv6(src="fe80::1", dst="ff02::1")
    payloads = [
        TCP(sport=1024, dport=80, flags="S"),
        TCP(sport=443, dport=500, flags="SA") / Raw(b"A" * 1200),
        UDP(sport=53, dport=4789) / Raw(b"A" * 150),
        UDP(sport=1, dport=53),
    ]
    packets = [ether / net / load for net in (v4, odd, v6, all_nodes) for load in payloads]
    packets += [
        ether / v4 / ICMP(),
        ether / v6 / ICMPv6EchoRequest(),
        ether / v4 / GRE() / v4 / payloads[0],
        ether / IP(src="10.0.0.1", dst="10.1.0.9", frag=20) / Raw(b"rest"),
        ether / IP(src="10.0.0.1", dst="10.1.0.9", flags="MF") / payloads[1],
        ether / v6 / IPv6ExtHdrFragment(nh=17, offset=3) / Raw(b"rest"),
        ether / ARP(pdst="10.0.0.1"),
        Ether(dst="ff:ff:ff:ff:ff:ff", src="02:00:00:00:00:01") / ARP(),
        ether / Dot1Q(vlan=5) / v4 / payloads[0],
        ether / Dot1Q(vlan=6) / Dot1Q(vlan=7) / v6 / payloads[2],
        Ether(dst="02:00:00:00:00:02", type=0x8847) / MPLS(label=16, s=1) / v4 / payloads[3],
        Ether(dst="02:00:00:00:00:02", type=0x8864) / PPPoE(sessionid=1) / Raw(b"\0\x21") / v4,
        Ether(dst="02:00:00:00:00:03", type=0x88B5) / Raw(b"\xff" * 20),
    ]
    return [bytes(packet) for packet in packets]


@cache
def packets() -> Batch:
    """Traffic that every expression says yes and no to, then cut, changed and random octets."""
    dice = random.Random(4)
    whole = traffic()
    found = [*whole, b"", b"\x08"]
    for packet in whole * 6:
        changed = bytearray(packet[: dice.randrange(len(packet) + 1)])
        for _ in range(dice.randrange(4)):
            if changed:
                changed[dice.randrange(len(changed))] = dice.choice([0, 1, 5, 255, 128, 69])
        found.append(bytes(changed))
    found += [dice.randbytes(dice.randrange(90)) for _ in range(100)]
    batch = from_packets(found)
    batch.wire_length = batch.length + np.array([dice.choice([0, 0, 900]) for _ in found])
    return batch


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expression_decides_as_libpcap_does(expression: str) -> None:
    program = compiled(expression)
    batch = packets()
    verdict = bpf.run(program, batch)
    assert verdict.dtype == np.int64
    assert verdict.tolist() == judged(program, batch)
    assert verdict.any(), "no packet of the test matches"
    assert not expression or not verdict.all(), "all packets of the test match"


@pytest.mark.parametrize("count", [0, 1, 2, 64, 65])
def test_batch_sizes_and_other_offsets(count: int) -> None:
    program = compiled("tcp port 80 or udp port 53")
    batch = packets().select(np.arange(len(packets()))[::-1][:count])
    assert bpf.run(program, batch).tolist() == judged(program, batch)


STORES = [(0x02, 0, 0, cell) for cell in range(16)]  # libpcap's cells begin as anything
WORDS = st.sampled_from([0, 1, 2, 4, 14, 255, 2**31 - 1, 2**31, 2**32 - 1]) | st.integers(0, 40)
CODES = [
    *(0x20 + mode + size for mode in (0, 0x20) for size in (0, 8, 16)),
    0x00, 0x60, 0x80, 0x01, 0x61, 0x81, 0xB1, 0x02, 0x03, 0x07, 0x87, 0x84,
    *(op + src for op in range(0x04, 0xB4, 0x10) for src in (0, 8) if op != 0x84),
]  # fmt: skip
JUMPS = [op + source for op in range(0x15, 0x55, 0x10) for source in (0, 8)]


@st.composite
def programs(draw: st.DrawFn) -> np.ndarray:
    instructions = [(0x00, 0, 0, draw(WORDS)), *STORES]
    count = draw(st.integers(1, 25))
    for left in range(count, 0, -1):
        kind = draw(st.integers(0, 9))
        near = st.integers(0, min(left - 1, 255))
        if kind == 0:
            instructions.append((0x05, 0, 0, draw(near)))
        elif kind == 1:
            instructions.append((draw(st.sampled_from([0x06, 0x16])), 0, 0, draw(WORDS)))
        elif kind <= 4:
            instructions.append((draw(st.sampled_from(JUMPS)), draw(near), draw(near), draw(WORDS)))
        else:
            opcode = draw(st.sampled_from(CODES))
            k = draw(WORDS)
            if opcode in (0x60, 0x61, 0x02, 0x03):
                k %= 16
            elif opcode in (0x64, 0x74):
                k %= 32  # more is undefined in C
            elif opcode & 7 < 2 and k >= 0xFFFFF000:
                k = 0xFFFFEFFF  # ancillary data begins here
            elif opcode in (0x34, 0x94):
                k = k or 3
            instructions.append((opcode, 0, 0, k))
    return code(*instructions, (0x16, 0, 0, 0))


@settings(max_examples=300, deadline=None)
@given(programs(), st.lists(st.binary(max_size=48), max_size=6))
def test_any_valid_program_runs_as_in_libpcap(program: np.ndarray, found: list[bytes]) -> None:
    assert need_libpcap().bpf_validate(program.tobytes(), len(program)) == 1
    batch = from_packets(found)
    batch.wire_length += 7
    assert bpf.run(program, batch).tolist() == judged(program, batch)


A_FROM_LEN = (0x80, 0, 0, 0)
RETURN_A = (0x16, 0, 0, 0)
RETURN_9 = (0x06, 0, 0, 9)


@pytest.mark.parametrize("operation", [0x3C, 0x9C])
def test_division_by_zero_refuses(operation: int) -> None:
    by_x = code(A_FROM_LEN, (operation, 0, 0, 0), RETURN_9)
    by_k = code(A_FROM_LEN, (operation & ~8, 0, 0, 0), RETURN_9)
    batch = from_packets([b"abc"])
    assert bpf.run(by_x, batch).tolist() == judged(by_x, batch) == [0]
    assert bpf.run(by_k, batch).tolist() == [0]


@pytest.mark.parametrize("operation", [0x64, 0x74, 0x6C, 0x7C])
@pytest.mark.parametrize("distance", [0, 1, 31, 32, 33, 2**32 - 1])
def test_shifts_by_more_than_the_word_give_zero(operation: int, distance: int) -> None:
    k = 0 if operation & 8 else distance
    program = code((0x01, 0, 0, distance), (0x00, 0, 0, 0x80000001), (operation, 0, 0, k), RETURN_A)
    left = operation & 0xF0 == 0x60
    expected = (0x80000001 << distance if left else 0x80000001 >> distance) if distance < 32 else 0
    assert bpf.run(program, from_packets([b"x"])).tolist() == [expected & 0xFFFFFFFF]


@pytest.mark.parametrize(("cell", "expected"), [(3, 5), (4, 7), (5, 0)])
def test_memory_cells_keep_both_registers(cell: int, expected: int) -> None:
    stores = [(0x00, 0, 0, 5), (0x01, 0, 0, 7), (0x02, 0, 0, 3), (0x03, 0, 0, 4)]
    load, load_x = (0x60, 0, 0, cell), (0x61, 0, 0, cell)
    for program in (
        code(*stores, load, RETURN_A),
        code(*stores, load_x, (0x87, 0, 0, 0), RETURN_A),
    ):
        assert bpf.run(program, from_packets([b"x"] * 3)).tolist() == [expected] * 3


def test_indexed_load_does_not_wrap_around() -> None:
    program = code((0x01, 0, 0, 2**32 - 1), (0x50, 0, 0, 1), RETURN_9)
    batch = from_packets([b"abc"])
    assert bpf.run(program, batch).tolist() == judged(program, batch) == [0]


def test_empty_program_accepts_all() -> None:
    assert bpf.run(code(), from_packets([b"a", b""])).tolist() == [0xFFFFFFFF] * 2


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (4, [0, 4, 0]),  # SKF_AD_PKTTYPE
        (20, [0, 0, 0]),  # SKF_AD_MARK
        (44, [0, 0x6005, 7]),  # SKF_AD_VLAN_TAG
        (48, [0, 1, 1]),  # SKF_AD_VLAN_TAG_PRESENT
        (60, [0, 0x8100, 0x88A8]),  # SKF_AD_VLAN_TPID
        (8, [0, 0, 0]),  # SKF_AD_IFINDEX: not known
    ],
)
@pytest.mark.parametrize("size", [0x20, 0x28, 0x30])
def test_ancillary_loads_read_the_columns(offset: int, expected: list[int], size: int) -> None:
    batch = from_packets([b"a", b"", b"c"])
    batch.direction = np.array([INBOUND, OUTBOUND, INBOUND], np.uint8)
    program = code((size, 0, 0, 0xFFFFF000 + offset), RETURN_A)
    without = [0, 4, 0] if offset == 4 else [0, 0, 0]
    assert bpf.run(program, batch).tolist() == without
    batch.vlan = np.array([0, 0x8100_6005, 0x88A8_0007])
    assert bpf.run(program, batch).tolist() == expected


@pytest.mark.parametrize(
    ("program", "what"),
    [
        (code((0xFF, 0, 0, 0), RETURN_9), "instruction 0 is unknown"),
        (code((0x20, 0, 0, 0), (0x8C, 0, 0, 0), RETURN_9), "instruction 1 is unknown"),
        (code((0x15, 1, 0, 0), RETURN_9), "instruction 0 jumps out of the program"),
        (code((0x15, 0, 1, 0), RETURN_9), "instruction 0 jumps out of the program"),
        (code((0x05, 0, 0, 1), RETURN_9), "instruction 0 jumps out of the program"),
        (code((0x05, 0, 0, 2**32 - 1), RETURN_9), "instruction 0 jumps out of the program"),
        (code((0x02, 0, 0, 16), RETURN_9), "instruction 0 names a memory cell"),
        (code((0x61, 0, 0, 16), RETURN_9), "instruction 0 names a memory cell"),
        (code(RETURN_9, (0x07, 0, 0, 0)), "instruction 1 is the last and does not return"),
    ],
)
@pytest.mark.parametrize("count", [0, 1])
def test_programs_that_make_no_sense_are_bugs(program: np.ndarray, what: str, count: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as judge, pytest.raises(OSError):
        libc.attach_filter(judge.fileno(), program)
    with pytest.raises(ValueError, match=what):
        bpf.run(program, from_packets([b"x"] * count))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_where_a_head_ends_makes_no_difference(expression: str) -> None:
    """Heads are octets like others: also where a load begins in one and ends in the body."""
    packets = traffic()
    program = compiled(expression)
    for head in (0, 1, 13, 14, 15, 16, 27, 40):
        batch = headed(packets, [min(head, len(packet)) for packet in packets])
        assert [batch.octets(index) for index in range(len(batch))] == packets
        assert bpf.run(program, batch).tolist() == judged(program, batch)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=40), st.sampled_from(EXPRESSIONS))
@settings(max_examples=60, deadline=None)
def test_every_packet_may_have_another_head(lengths: list[int], expression: str) -> None:
    packets = (traffic() * 2)[: len(lengths)]
    heads = [min(pair) for pair in zip(lengths, map(len, packets), strict=False)]
    batch = headed(packets, heads)
    program = compiled(expression)

    assert bpf.run(program, batch).tolist() == judged(program, batch)


def headed(packets: list[bytes], lengths: list[int]) -> Batch:
    """Put the first octets of each packet into a head."""
    batch = from_packets([packet[n:] for packet, n in zip(packets, lengths, strict=False)])
    heads = [packet[:n] for packet, n in zip(packets, lengths, strict=False)]
    batch.head = np.frombuffer(b"".join(heads), np.uint8)
    batch.head_length = np.array(lengths, np.int64)
    batch.head_start = np.cumsum(batch.head_length) - batch.head_length
    batch.wire_length = batch.total_length
    return batch
