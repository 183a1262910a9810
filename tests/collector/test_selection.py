"""A sink's filter and snap length; tcpdump reads the same packets and is the judge."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import outer
import pcap_files
import pytest
from delivered import delivery

import lab
from collector.decap import decapsulate
from collector.ledger import SinkLedger
from collector.sinks.options import LONGEST, SinkOptions
from collector.sinks.selection import Selection
from tunnelbridge.batch import Batch, from_packets
from tunnelbridge.errors import UsageError
from tunnelbridge.wire import udp
from tunnelbridge.wire.layer import Kind

EXPRESSIONS = [
    "ip", "ip6", "tcp port 80", "udp and dst port 53", "host 10.0.0.9", "vlan", "vlan 5",
    "vlan and ip", "ether host 02:00:00:00:00:01", "ether[12:4] = 0x08004500", "greater 80",
    "ether[10:4] = 0x00010800", "not ip6", "tcp[tcpflags] & tcp-syn = 0",
]  # fmt: skip


def mirrored() -> Batch:
    """Return decapsulated frames of every shape: plain, with a synthetic MAC, with a tag put back."""
    packets = []
    for port in (80, 53, 9):
        for source in ("10.0.0.1", "10.0.0.9"):
            tcp = outer.ipv4(outer.tcp(bytes(port), port, 80), 6, source, "10.0.0.2")
            datagram = outer.ipv4(outer.udp(b"x" * 20, 1, port), 17, source, "10.0.0.2")
            packets += [gre("0000 6558", outer.frame(tcp)), gre("0000 0800", datagram)]
            packets.append(gre("1000 88be 00000001 1005 1001 00000000", outer.frame(tcp)))
            packets.append(gre("0000 6558", outer.frame(datagram, 5)))
    packets.append(gre("0000 86dd", outer.ipv6(outer.udp(b"", 1, 53), 17, "fd00::1", "fd00::2")))
    found = decapsulate(from_packets(packets), Kind.IPV4, udp.port_table({}))
    assert len(found.index) == len(packets)
    assert found.batch.head_length is not None
    assert set(found.batch.head_length.tolist()) == {0, 14, 16}
    return found.batch


def gre(header: str, payload: bytes) -> bytes:
    return outer.ipv4(bytes.fromhex(header) + payload, 47, "192.0.2.1", "192.0.2.2")


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_filter_takes_what_tcpdump_takes(tmp_path: Path, expression: str) -> None:
    lab.need("tcpdump")
    frames = mirrored()
    octets = [frames.octets(index) for index in range(len(frames))]
    path, judged = pcap_files.write(tmp_path / "in", octets), tmp_path / "out"
    subprocess.run(
        ["tcpdump", "--nano", "-r", path, "-w", judged, expression], check=True, capture_output=True
    )
    expected = [packet for _, packet, _ in pcap_files.parse(judged.read_bytes())]
    assert 0 < len(expected) < len(octets) or expression == "greater 80"
    ledger = SinkLedger("x")

    chosen = Selection(SinkOptions("x", expression)).apply(delivery(frames), ledger)

    assert [chosen.frames.octets(index) for index in range(len(chosen))] == expected
    assert ledger.filtered == ledger.total() == len(octets) - len(expected)


@pytest.mark.parametrize("snaplen", [1, 13, 14, 15, 60, 100, LONGEST])
def test_the_snap_length_cuts_and_the_original_length_stays(snaplen: int) -> None:
    frames = mirrored()
    whole = [frames.octets(index) for index in range(len(frames))]
    ledger = SinkLedger("x")

    chosen = Selection(SinkOptions("x", snaplen=snaplen)).apply(delivery(frames), ledger)

    assert [chosen.frames.octets(n) for n in range(len(chosen))] == [
        each[:snaplen] for each in whole
    ]
    assert chosen.frames.wire_length.tolist() == frames.wire_length.tolist()
    assert ledger.total() == 0
    assert [frames.octets(n) for n in range(len(frames))] == whole  # other sinks get them whole


@pytest.mark.parametrize("expression", ["", "ip", "not ip"])
def test_nothing_to_choose_from(expression: str) -> None:
    ledger = SinkLedger("x")
    chosen = Selection(SinkOptions("x", expression)).apply(delivery(from_packets([])), ledger)
    assert (len(chosen), ledger.filtered) == (0, 0)


def test_without_filter_nothing_is_copied() -> None:
    given = delivery(from_packets([bytes(60)]))
    assert Selection(SinkOptions("x")).apply(given, SinkLedger("x")) is given


def test_the_filter_sees_whole_frames() -> None:
    """The snap length comes after the filter, as in tcpdump."""
    frames = from_packets([bytes(99) + b"\7", bytes(100)])
    selection = Selection(SinkOptions("x", "ether[99] = 7", 10))
    chosen = selection.apply(delivery(frames), SinkLedger("x"))
    assert np.diff([0, *chosen.frames.length]).tolist() == [10]


def test_a_wrong_filter() -> None:
    with pytest.raises(UsageError, match=r'^filter "tcp prot 80": syntax error near "prot"'):
        Selection(SinkOptions("x", "tcp prot 80"))
