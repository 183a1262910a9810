"""One capture file: streams as they appear, what is counted of each, times in every format."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from delivered import delivery
from files_rig import START, frame, name_of

import lab
from collector.sinks.capture_file import CaptureFile
from collector.sinks.formats import Format, Pcap, Pcapng, parse_format
from collector.sinks.options import SinkOptions
from collector.sinks.pcap import PcapSink
from tunnelbridge.batch import Batch, from_packets
from tunnelbridge.linux import record_writer
from tunnelbridge.linux.record_writer import Written

Make = Callable[[Format], CaptureFile]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make capture files at ``x``; close them at the end."""
    opened: list[int] = []

    def work(form: Format) -> CaptureFile:
        opened.append(os.open(tmp_path / "x", os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        return CaptureFile(opened[-1], form, name_of, START)

    yield work
    for fd in opened:
        os.close(fd)


def numbered(count: int, first: int = 0) -> Batch:
    return from_packets([frame(first + i, 60 + i % 5) for i in range(count)], START + 1)


def blocks(path: Path) -> list[tuple[int, bytes]]:
    """Return a pcapng file's blocks: type and body."""
    octets, found, at = path.read_bytes(), [], 0
    while at < len(octets):
        kind, total = struct.unpack_from("=II", octets, at)
        found.append((kind, octets[at + 8 : at + total - 4]))
        at += total
    return found


def counters(body: bytes) -> dict[int, int]:
    """Return the counters of an interface statistics block, by their codes."""
    found, at = {}, 12
    while True:
        code, length = struct.unpack_from("=HH", body, at)
        if code == 0:
            return found
        if code >= 4:
            (found[code],) = struct.unpack_from("=Q", body, at + 4)
        at += 4 + length


def test_interfaces_come_when_their_streams_do(tmp_path: Path, make: Make) -> None:
    file = make(Pcapng())
    for streams in ([], [7], [7, 7], [3, 7, 9, 3], [200], [9]):
        batch = numbered(len(streams))
        assert file.write(delivery(batch, stream=streams)).error is None
    file.finish(START + 9)
    kinds = [kind for kind, _ in blocks(tmp_path / "x")]
    shb, idb, isb, epb = 0x0A0D0D0A, 1, 5, 6
    assert kinds == [
        shb, idb, epb, epb, epb, idb, idb, epb, epb, epb, epb, idb, epb, epb, isb, isb, isb, isb
    ]  # fmt: skip
    lab.need("tshark")
    done = subprocess.run(
        ["tshark", "-n", "-r", tmp_path / "x", "-T", "fields", "-e", "frame.interface_name"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = [7, 7, 7, 3, 7, 9, 3, 200, 9]
    assert done.stdout.splitlines() == [f"vxlan 192.0.2.{n} vni {n}" for n in expected]
    assert file.size == len((tmp_path / "x").read_bytes()) - sum(
        len(body) + 12 for kind, body in blocks(tmp_path / "x") if kind == isb
    )


def test_any_number_of_streams(tmp_path: Path, make: Make) -> None:
    file = make(Pcapng())
    streams = np.random.default_rng(1).integers(0, 5000, 3000)
    file.write(delivery(numbered(3000), stream=streams))
    file.write(delivery(numbered(3000), stream=streams[::-1]))
    summary = file.finish(START)
    found = blocks(tmp_path / "x")
    received = [counters(body)[4] for kind, body in found if kind == 5]
    names = [name_of(int(n)).key() for n in np.unique(streams)]
    assert sorted(summary.streams) == sorted(names)
    totals = np.bincount(streams)
    assert received == [2 * int(totals[int(name.split()[-1])]) for name in summary.streams]


def test_statistics_count_what_was_lost_and_dropped(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make(Pcapng())
    file.write(delivery(numbered(4), stream=[0, 1, 1, 1], gap=[0, 2, 0, 2**33]))
    writev, calls = record_writer.libc.writev, []

    def full(fd: int, vectors: int, count: int) -> int:
        calls.append(count)
        if len(calls) > 1:
            raise OSError(28, "")
        return writev(fd, vectors, 3 * 2 + 1)  # two records and a header

    with monkeypatch.context() as patch:
        patch.setattr(record_writer.libc, "writev", full)
        result = file.write(delivery(numbered(5), stream=[0, 1, 1, 0, 0], gap=[1, 0, 0, 0, 0]))
    assert result == Written(2, 60 + 61, "disk-full")
    summary = file.finish(START + 9)
    told = [counters(body) for kind, body in blocks(tmp_path / "x") if kind == 5]
    received, lost, dropped, delivered = 4, 5, 7, 8
    assert told == [
        {received: 4, lost: 1, dropped: 2, delivered: 2},
        {received: 5, lost: 2**33 + 2, dropped: 1, delivered: 4},
    ]
    assert (summary.packets, summary.lost, summary.dropped) == (6, 2**33 + 3, 3)
    assert summary.octets == 60 + 61 + 62 + 63 + 60 + 61


def test_summaries_have_the_earliest_and_latest_time(make: Make) -> None:
    file = make(Pcap())
    for times in ([50, 40], [], [60, 45]):
        batch = numbered(len(times))
        batch.timestamp = np.array(times, np.int64)
        file.write(delivery(batch, truncated=[1] * len(times)))
    summary = file.finish(START)
    assert (summary.first, summary.last, summary.truncated) == (40, 60, 4)


@pytest.mark.parametrize("name", ["pcapng", "pcap", "pcap-us"])
def test_times_and_lengths_in_every_format(tmp_path: Path, make: Make, name: str) -> None:
    lab.need("tshark", "capinfos")
    file = make(parse_format(name))
    batch = numbered(3)
    batch.timestamp = START + np.array([123_456_789, 999_999_999, 1_000_000_000])
    batch.wire_length = np.array([60, 2000, 62])
    file.write(delivery(batch))
    file.finish(START)
    done = subprocess.run(
        ["tshark", "-n", "-r", tmp_path / "x", "-T", "fields", "-e", "frame.time_epoch",
         "-e", "frame.cap_len", "-e", "frame.len"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    fractions = ("123456789", "999999999") if name != "pcap-us" else ("123456000", "999999000")
    assert [line.split("\t") for line in done.stdout.splitlines()] == [
        [f"1700000040.{fractions[0]}", "60", "60"],
        [f"1700000040.{fractions[1]}", "61", "2000"],
        ["1700000041.000000000", "62", "62"],
    ]
    info = subprocess.run(
        ["capinfos", "-t", "-T", "-r", tmp_path / "x"], capture_output=True, text=True, check=True
    )
    assert (
        info.stdout.split()[1] == {"pcapng": "pcapng", "pcap": "nsecpcap", "pcap-us": "pcap"}[name]
    )


@pytest.mark.parametrize("through_a_pipe", [False, True])
def test_a_single_file_may_be_pcapng(
    tmp_path: Path, through_a_pipe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one.pcapng"
    reader = -1
    if through_a_pipe:
        reader, writer = os.pipe()
        monkeypatch.setattr("collector.sinks.pcap.open_pcap", lambda _: writer)
    sink = PcapSink(SinkOptions(str(path)), Pcapng(), name_of)
    for first in (0, 10):
        sink.put(delivery(numbered(10, first), stream=np.arange(10) % 2))
    sink.close()
    if through_a_pipe:
        with os.fdopen(reader, "rb") as pipe:
            path.write_bytes(pipe.read())
    assert sink.ledger.delivered == 20
    assert sink.ledger.octets == 20 * 62
    kinds = [kind for kind, _ in blocks(path)]
    assert kinds[1:3] == [1, 1]
    assert kinds[3:] == [6] * 20 + [5] * 2


def test_records_of_nothing(make: Make) -> None:
    for form in (Pcapng(), Pcap()):
        file: Any = make(form)
        assert file.write(delivery(numbered(0))) == Written(0, 0, None)
        assert file.finish(START).packets == 0
