"""Rule lists in the kernel: what its program lets through is never less than the rules accept."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing
from ipaddress import ip_network
from pathlib import Path

import numpy as np
import pytest
from filter_oracle import REJECTING, Packet, accepts, some_packets, some_rules
from hypothesis import given, settings
from hypothesis import strategies as st

import lab
from tunnelbridge import bpf
from tunnelbridge.batch import INBOUND, OUTBOUND, from_packets
from tunnelbridge.clone.rules import Rule
from tunnelbridge.linux import libc
from tunnelbridge.linux.bpf_join import join
from tunnelbridge.linux.libpcap import compile_filter, kernel_takes, refuse_marked
from tunnelbridge.policy.rule_programs import compile_lists


@pytest.fixture(scope="module")
def ns(root: None) -> Iterator[str]:
    with lab.namespace() as name:
        yield name


def check(lists: Sequence[Sequence[Rule]], packets: list[Packet], program: libc.Program) -> None:
    """Packets alternate between the directions."""
    batch = from_packets([packet.frame for packet in packets])
    batch.direction = np.where(np.arange(len(packets)) % 2, OUTBOUND, INBOUND).astype(np.uint8)
    said = bpf.run(program, batch) != 0
    for number, packet in enumerate(packets):
        wanted = any(accepts(rules, packet, number % 2 == 0) for rules in lists)
        if packet.plain:
            assert said[number] == wanted, packet
        else:
            assert said[number] or not wanted, packet


@given(st.integers(0, 2**32), st.lists(st.integers(0, 6), max_size=4))
@settings(max_examples=200, deadline=None)
def test_never_less_than_the_rules_accept(ns: str, seed: int, sizes: list[int]) -> None:
    dice = random.Random(seed)
    lists = [some_rules(dice, size) for size in sizes]
    packets = [*some_packets(dice, 60, plain=True), *some_packets(dice, 60)]
    check(lists, packets, lab.in_namespace(ns, compile_lists, lists, "lo"))


@pytest.mark.parametrize("reject", REJECTING, ids=str)
def test_what_only_looks_rejected(reject: Rule) -> None:
    lists = [[reject, Rule()]]
    check(lists, some_packets(random.Random(3), 3000), compile_lists(lists))


def test_long_lists(ns: str) -> None:
    """Jumps that are longer than an octet can say."""
    dice = random.Random(9)
    lists = [[rule for rule in some_rules(dice, 120) if not rule.matches_all] for _ in range(2)]
    program = lab.in_namespace(ns, compile_lists, lists, "lo")
    assert len(program) > 1000
    check(lists, [*some_packets(dice, 500, plain=True), *some_packets(dice, 500)], program)


def test_one_list(ns: str) -> None:
    dice = random.Random(6)
    rules = some_rules(dice, 12)
    program = lab.in_namespace(ns, compile_lists, [rules], "lo")
    check([rules], some_packets(dice, 300), program)
    check([], [], program)


def test_without_an_interface_either_direction_will_do() -> None:
    rules = [Rule(direction="in", protocol=6), Rule(direction="out", protocol=17)]
    ip = bytes.fromhex("0800 45000028 00000000 40")
    frames = [bytes(12) + ip + bytes((protocol,)) + bytes(30) for protocol in (6, 17, 1)]
    program = compile_lists([rules])
    assert (bpf.run(program, from_packets(frames)) != 0).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("lists", "verdict"),
    [([], 0), ([[]], 0), ([[Rule(accept=False)]], 0), ([[], [Rule()]], 262144)],
    ids=str,
)
def test_nothing_and_everything(lists: list[list[Rule]], verdict: int) -> None:
    assert compile_lists(lists).tolist() == [(6, 0, 0, verdict)]


def test_a_direction_alone(ns: str) -> None:
    program = lab.in_namespace(ns, compile_lists, [[Rule(direction="out")]], "lo")
    batch = from_packets([bytes(14), bytes(60)])
    batch.direction[1] = OUTBOUND
    assert (bpf.run(program, batch) != 0).tolist() == [False, True]


def fifty_sessions() -> list[list[Rule]]:
    """Fifty rule tables as users write them: a service each, some clients, some exceptions."""
    dice = random.Random(7)

    def rule() -> Rule:
        clients = ip_network((0x0A000000 | dice.getrandbits(16) << 8, 24))
        return Rule(
            accept=dice.random() < 0.8,
            protocol=dice.choice((6, 6, 17)),
            source=clients if dice.random() < 0.5 else None,
            destination=ip_network((0xAC100000 | dice.getrandbits(20), 32)),
            destination_ports=((dice.choice((80, 443, 53)),) * 2,),
        )

    return [[rule() for _ in range(10)] for _ in range(50)]


def test_the_kernel_takes_fifty_lists_of_ten_rules(ns: str) -> None:
    program = lab.in_namespace(ns, compile_lists, fifty_sessions(), "lo")
    joined = join([program, lab.in_namespace(ns, compile_filter, "vlan 5 and udp port 4789", "lo")])
    assert joined is not None
    room = int(Path("/proc/sys/net/core/optmem_max").read_text())
    if room < 1 << 16:
        pytest.skip(f"net.core.optmem_max is {room}: 128 KiB since Linux 6.8")
    assert kernel_takes(refuse_marked(joined, direction="in"))


MACS = bytes.fromhex("02000000000b 02000000000a")


def udp(port: int, tag: bytes = b"") -> bytes:
    header = bytes.fromhex("0800 4500002e 00000000 40110000 0a000001 0a000002 ffff")
    return MACS + tag + header + port.to_bytes(2) + bytes(22)


def test_real_packets(ns: str) -> None:
    """In port 53, out port 80, or VLAN 5, whose tag the kernel has taken out of the frame."""
    rules = [
        Rule(direction="in", protocol=17, destination_ports=((53, 53),)),
        Rule(direction="out", protocol=17, destination_ports=((80, 80),)),
    ]
    tag = {number: b"\x81\0\0" + bytes((number,)) for number in (5, 6)}
    with lab.veth(ns, ns) as (near, far):
        programs = [
            lab.in_namespace(ns, compile_lists, [rules], near),
            lab.in_namespace(ns, compile_filter, "vlan 5", near),
        ]
        joined = join(programs)
        assert joined is not None

        def listen() -> socket.socket:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            libc.attach_filter(sock.fileno(), joined)
            sock.bind((near, 3))
            sock.settimeout(5)
            return sock

        def send(interface: str, frame: bytes) -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
                sock.bind((interface, 0))
                sock.send(frame)

        with closing(lab.in_namespace(ns, listen)) as sock:
            for interface, frame in (
                (far, udp(53)), (far, udp(80)), (near, udp(53)), (near, udp(80)),
                (far, udp(53, tag[6])), (far, udp(80, tag[6])), (far, udp(80, tag[5])),
                (far, udp(99, tag[5])), (far, udp(99)), (far, udp(53) + b"last"),
            ):  # fmt: skip
                lab.in_namespace(ns, send, interface, frame)
            seen = [sock.recv(2048)]
            while seen[-1][-4:] != b"last":
                seen.append(sock.recv(2048))
        # udp(53) of VLAN 6 is accepted too: rules look behind the tag, which is not in the frame
        assert seen == [udp(53), udp(80), udp(53), udp(80), udp(99), udp(53) + b"last"]
