"""Reassembly failures: the kernel counts what it cannot put together, in a namespace of its own."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from pathlib import Path

import outer
import pytest

import lab
from tunnelbridge.linux.snmp import ReassemblyFailures, _failures

pytestmark = pytest.mark.usefixtures("root")


@pytest.fixture(scope="module")
def ns(root: None) -> Iterator[str]:
    with lab.namespace(ipv6=True) as name:
        yield name


NUMBERS = itertools.count(700)


def overlap(ns: str) -> None:
    """Send fragments of one datagram to the namespace itself that contradict each other."""

    number = next(NUMBERS)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            for offset, more, octets in ((0, 1, bytes(64)), (4, 0, bytes(64)), (6, 1, bytes(16))):
                field = more << 13 | offset
                packet = outer.ipv4(octets, 17, "127.0.0.1", "127.0.0.1", number, field)
                sock.sendto(packet, ("127.0.0.1", 0))

    lab.in_namespace(ns, send)


def test_failures_are_those_of_the_namespace_it_was_made_in(ns: str) -> None:
    overlap(ns)  # before: not counted
    here = ReassemblyFailures()
    there = lab.in_namespace(ns, ReassemblyFailures)
    before = here.count()
    assert there.count() == 0

    overlap(ns)

    lab.until(lambda: there.count() > 0, what="counted")  # asked from a thread that is elsewhere
    assert here.count() == before
    first = there.count()
    overlap(ns)
    lab.until(lambda: there.count() == 2 * first, what="counted again")
    for each in (here, there):
        each.close()
        each.close()


def test_nothing_stays_open(ns: str) -> None:
    before = lab.descriptors()
    ReassemblyFailures().close()
    assert lab.left_open(before) == []


@pytest.mark.parametrize(
    ("text", "failures"),
    [
        ("Ip: A ReasmFails B\nIp: 1 7 3\nIcmp: ReasmFails\nIcmp: 9\n", 7),
        ("Ip6InReceives 5\nIp6ReasmFails            \t12\n", 12),
        ("", 0),
    ],
)
def test_both_files(text: str, failures: int) -> None:
    assert _failures(text) == failures


def test_the_kernel_writes_what_is_read() -> None:
    assert "ReasmFails" in Path("/proc/self/net/snmp").read_text()
