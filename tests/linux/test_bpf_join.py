"""Joined programs accept what any of their parts accepts, also of packets too short for some."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from filter_oracle import some_packets
from hypothesis import given, settings
from hypothesis import strategies as st

import lab
from tunnelbridge import bpf
from tunnelbridge.batch import Batch, from_packets
from tunnelbridge.linux import libc
from tunnelbridge.linux.bpf_assembler import RETURN, Assembly
from tunnelbridge.linux.bpf_join import REFUSE_ALL, add_program, join
from tunnelbridge.linux.libpcap import compile_filter, kernel_takes, refuse_marked

HOSTS = " or ".join(f"host 10.{i % 3}.{i}.{i % 7}" for i in range(70))
EXPRESSIONS = [
    "tcp", "arp", "tcp port 80 or udp portrange 5000-65535", "host 10.0.0.1 and not icmp",
    "ip6 and net fd00::/64", "ip6 src net 8000::/1", "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "tcp[20] & 1 = 0", "udp[50:4] & 1 = 1",
    "(ether[11] = 9 and ether[60] = 1) or ether[40] & 1 = 1",
    "ether[100] & 1 = 0", "ether[60:2] < 30000",
    "ip[ip[9]:2] & 1 = 0", "len > 70", "less 60", "ip[2:2] - ip[0] > 30", "ip6[6] = 60", "vlan 5",
    "ether proto 0x8864", "src port 0 or dst port 65535", HOSTS, f"udp or ({HOSTS})",
    "(ip[8:4] & 0xff = 0 and tcp[2:2] * 2 > 100) or udp[4] < ip[1]",
]  # fmt: skip
LIVE = [
    "vlan", "vlan 5", "vlan and tcp", "not vlan", "inbound", "outbound and udp", "vlan 6 and vlan 7",
]  # fmt: skip


def traffic(seed: int, count: int = 150) -> Batch:
    """Return packets of which some are cut, with tags out of the frame and both directions."""
    dice = random.Random(seed)
    frames = []
    for packet in some_packets(dice, count):
        frame = packet.frame + dice.randbytes(dice.choice((0, 0, 60)))
        frames.append(frame[: dice.choice((len(frame), dice.randrange(len(frame) + 1)))])
    batch = from_packets(frames)
    vlan = [dice.choice((0, 0, 0x81000005, 0x81000006)) for _ in frames]
    direction = [dice.randrange(2) for _ in frames]
    return replace(batch, vlan=np.array(vlan), direction=np.array(direction, np.uint8))


def verdicts(program: libc.Program, batch: Batch) -> list[bool]:
    """Return what our interpreter says, which tests/clone/test_bpf.py holds against libpcap's."""
    verdict: list[bool] = (bpf.run(program, batch) != 0).tolist()
    return verdict


def check_join(programs: list[libc.Program], batch: Batch) -> None:
    joined = join(programs, 10**6)
    assert joined is not None
    expected = np.zeros(len(batch), bool)
    for program in programs:
        expected |= bpf.run(program, batch) != 0
    assert verdicts(joined, batch) == expected.tolist()


@given(st.integers(0, 2**32), st.lists(st.sampled_from(EXPRESSIONS), max_size=6))
@settings(max_examples=80, deadline=None)
def test_joined_accept_what_any_accepts(seed: int, expressions: list[str]) -> None:
    check_join([compile_filter(expression) for expression in expressions], traffic(seed))


def test_every_two() -> None:
    batch = traffic(1, 200)
    programs = [compile_filter(expression) for expression in EXPRESSIONS]
    for one in programs:
        for other in programs:
            check_join([one, other], batch)


def test_those_of_interfaces_do_not_disturb_each_other(root: None) -> None:
    """``vlan`` and directions are loads that never fail."""
    with lab.namespace() as ns:
        live = [lab.in_namespace(ns, compile_filter, text, "lo") for text in LIVE]
    batch = traffic(2, 300)
    programs = [*live, *(compile_filter(text) for text in EXPRESSIONS[:8])]
    for one in live:
        for other in programs:
            check_join([one, other], batch)
    dice = random.Random(3)
    for _ in range(20):
        check_join(dice.sample(programs, 5), batch)


def test_a_load_beyond_the_end_ends_what_follows_too() -> None:
    """Why the tests of the length are there."""
    programs = [compile_filter("ether[100] = 1"), compile_filter("ether proto 0x88b5")]
    short = from_packets([bytes(12) + b"\x88\xb5" + bytes(20)])
    assert verdicts(programs[1], short) == [True]
    assembly = Assembly()
    for program in programs:
        add_program(assembly, program)
    assembly.add(RETURN, 0)
    assert verdicts(assembly.program(), short) == [False]
    check_join(programs, short)


def test_a_test_of_the_length_leaves_the_registers() -> None:
    """The load of a header's length is the only one that keeps A; libpcap has no use for that."""
    keeping = np.array(
        [(0x00, 0, 0, 7), (0xB1, 0, 0, 14), (0x15, 0, 1, 7), (6, 0, 0, 1), (6, 0, 0, 0)],
        libc.BPF_INSTRUCTION,
    )  # ld #7; ldxb 4*([14]&0xf); jeq #7; ret #1; ret #0
    others = compile_filter("ether proto 0x88b5 and ether[20] = 1 and ether[30] = 1")
    batch = from_packets([bytes(14), bytes(20), bytes(12) + b"\x88\xb5" + bytes(30)])
    check_join([keeping, others], batch)
    joined = join([keeping, others])
    assert joined is not None
    assert verdicts(joined, batch) == [False, True, True]


def test_long_programs_have_long_jumps() -> None:
    programs = [
        compile_filter(" or ".join(f"host 10.0.{part}.{i}" for i in range(120)))
        for part in range(3)
    ]
    joined = join(programs)
    assert joined is not None
    jumps = joined[joined["code"] == 0x05]
    assert (jumps["k"] > 255).any()
    header = bytes(12) + bytes.fromhex("0800 45000014 00000000 40110000")
    ends = [(part, last) for part in range(4) for last in (0, 1, 119, 120)]
    frames = [header + bytes((10, 0, *end)) + bytes(4) for end in ends]
    check_join(programs, from_packets(frames))
    assert verdicts(joined, from_packets(frames)) == [True, True, True, False] * 3 + [False] * 4


def test_what_is_simple_stays_simple() -> None:
    tcp, everything = compile_filter("tcp"), compile_filter("")
    for programs, expected in (
        ([], REFUSE_ALL), ([REFUSE_ALL], REFUSE_ALL), ([tcp], tcp), ([tcp, tcp, REFUSE_ALL], tcp),
        ([tcp, everything], everything),
    ):  # fmt: skip
        joined = join(programs)
        assert joined is not None
        assert joined.tolist() == expected.tolist()


def test_too_long() -> None:
    programs = [compile_filter(text) for text in ("tcp port 80", "udp[100] = 1", HOSTS)]
    joined = join(programs)
    assert joined is not None
    assert join(programs, len(joined)) is not None
    assert join(programs, len(joined) - 1) is None
    assert join(programs[:1], len(programs[0]) - 1) is None
    assert join([*programs, compile_filter("")], 1) is not None


def test_the_kernel_takes_them() -> None:
    """Its checks of jumps, and of cells that are read before they are written."""
    few = [HOSTS, "ip[ip[9]:2] & 1 = 0", "udp[100] = 1"]
    for expressions in (EXPRESSIONS, EXPRESSIONS[::-1], few):
        joined = join([compile_filter(text) for text in expressions])
        assert joined is not None
        assert kernel_takes(refuse_marked(joined, direction="in"))
