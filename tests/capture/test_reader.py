"""Everybody's capture files, read as libpcap and tshark read them, whole, cut short and damaged."""

from __future__ import annotations

import gzip
import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import capture_judges as judges
import numpy as np
import pytest
from capture_judges import Packet, read_path
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab import need
from tunnelbridge.capture.reader import open_capture
from tunnelbridge.errors import UserError


def files(folder: Path, *names: str) -> list[Path]:
    found = [path for name in names for path in sorted((folder / name).rglob("*.pcap*"))]
    assert len(found) > 15
    return found


def comparable(theirs: list[Packet], ours: list[Packet]) -> list[Packet]:
    """Some records claim an original length below what they hold; ours is never below."""
    whole = [len(packet.octets) for packet in ours] + [0] * len(theirs)
    return [
        packet._replace(wire_length=max(packet.wire_length, length))
        for packet, length in zip(theirs, whole, strict=False)
    ]


def test_foreign_files_read_as_libpcap_reads_them(captures: Path) -> None:
    compared = 0
    for path in files(captures, "tcpdump", "zeek", "pcapng", "malformed"):
        ours, damage = read_path(path)
        theirs, error, snaplen = judges.libpcap_reads(path)
        if error and "interface" in error.lower():
            continue  # libpcap wants one interface or several that are alike
        cut = [packet._replace(octets=packet.octets[:snaplen]) for packet in ours]
        assert cut == comparable(theirs, ours), path
        assert (damage is None) == (error is None), (path, damage, error)
        compared += len(ours)
    assert compared > 1000


def test_foreign_files_read_as_tshark_reads_them(captures: Path) -> None:
    need("tshark")
    paths = files(captures, "tcpdump", "zeek", "pcapng/output_le")
    with ThreadPoolExecutor(2) as pool:
        for path, theirs in zip(paths, pool.map(judges.tshark_reads, paths), strict=True):
            ours, damage = read_path(path)
            assert ours == comparable(theirs, ours), path
            assert damage is None, path


def test_byte_order_changes_nothing(captures: Path) -> None:
    for little in files(captures, "pcapng/output_le"):
        big = captures / "pcapng" / "output_be" / little.parent.name / little.name
        assert read_path(big) == read_path(little), big


@pytest.mark.parametrize("size", [1, 2, 3, 7, 628, 629])
def test_batch_size_changes_nothing(captures: Path, size: int) -> None:
    for path in (
        captures / "zeek" / "gre-within-gre.pcap",
        captures / "zeek" / "geneve-truncated.pcapng",
        captures / "pcapng" / "output_be" / "difficult" / "test202.pcapng",
        captures / "pcapng" / "empty.pcap",
    ):
        assert read_path(path, size) == read_path(path), path


def test_batches_point_into_the_mapped_file(captures: Path) -> None:
    path = captures / "zeek" / "gre-within-gre.pcap"
    capture = open_capture(path)
    batches = [batch for batch, _ in capture.batches(100)]
    assert [len(batch) for batch in batches] == [100] * 6 + [28]
    for batch in batches:
        assert batch.memory is batches[0].memory
        assert not batch.memory.flags.writeable
    assert batches[0].memory.tobytes() == path.read_bytes()


def test_offset_follows_the_batches(captures: Path) -> None:
    path = captures / "zeek" / "gre-within-gre.pcap"
    capture = open_capture(path)
    assert (capture.offset, capture.total_octets) == (0, path.stat().st_size)
    for batch, _ in capture.batches(100):
        assert capture.offset == batch.start[-1] + batch.length[-1]
    assert capture.offset == capture.total_octets
    next(capture.batches(1))
    assert capture.offset < 2000, "a second reading starts over"


def small_pcap() -> bytes:
    return judges.pcap("<", "nano", [(1, 2, 9, b"abcde"), (3, 4, 0, b""), (5, 6, 7, b"fghijkl")])


def small_pcapng() -> bytes:
    return b"".join([
        judges.section("<"),
        judges.interface("<", options=judges.option("<", 9, b"\x09")),
        judges.enhanced("<", 0, 7, b"abcde", 9, judges.option("<", 2, b"\2\0\0\0")),
        judges.block("<", 0x0BAD, b"skip me!"),
        judges.obsolete("<", 0, 8, b"fgh"),
        judges.enhanced("<", 0, 9, b"ijklmnop"),
    ])  # fmt: skip


def boundaries(octets: bytes) -> set[int]:
    """Offsets at which a pcap or pcapng file may end."""
    if octets[:4] == b"\x0a\x0d\x0d\x0a":
        offset, found = 0, set()
        while offset < len(octets):
            offset += struct.unpack_from("<I", octets, offset + 4)[0]
            found.add(offset)
        return found
    offset, found = 24, {24}
    while offset < len(octets):
        offset += 16 + struct.unpack_from("<I", octets, offset + 8)[0]
        found.add(offset)
    return found


@pytest.mark.parametrize("octets", [small_pcap(), small_pcapng()], ids=["pcap", "pcapng"])
def test_every_truncation_is_read_up_to_the_cut(tmp_path: Path, octets: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(octets)
    whole, damage = read_path(path)
    assert damage is None
    assert len(whole) == 3
    ends = boundaries(octets)
    for length in range(4, len(octets)):
        path.write_bytes(octets[:length])
        capture = open_capture(path)
        found = judges.read_all(capture)
        assert found == whole[: len(found)]
        last = max((end for end in ends if end <= length), default=0)
        assert capture.offset == last
        if length in ends:
            assert capture.damage is None
        else:
            assert capture.damage is not None
            assert re.search(r"is cut short \(.*needs \d+ octets, \d+ left\)", capture.damage)
            if last:
                assert f" at offset {last} " in capture.damage
        theirs, error, _ = judges.libpcap_reads(path)
        if last >= 48:  # libpcap refuses a pcapng file without an interface
            assert found == theirs
            assert (capture.damage is None) == (error is None)


def test_damage_is_told_with_number_offset_and_need(tmp_path: Path) -> None:
    path = tmp_path / "x"
    octets = small_pcap()
    path.write_bytes(octets[:-3])
    for size in (1, 2, 3):
        capture = open_capture(path)
        assert len(judges.read_all(capture, size)) == 2
        assert capture.damage == "record 3 at offset 61 is cut short (needs 7 octets, 4 left)"
        next(capture.batches(1))
        assert capture.damage is None, "a second reading starts over"
    path.write_bytes(octets[:-10])
    assert read_path(path)[1] == (
        "record 3 at offset 61 is cut short (its header needs 16 octets, 13 left)"
    )
    path.write_bytes(octets[:20])
    assert read_path(path)[1] == "the file header is cut short (needs 24 octets, 20 left)"


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_content_raises(tmp_path: Path, data: st.DataObject) -> None:
    """Octets changed, put in and taken out: what is given out always lies inside the file."""
    octets = bytearray(data.draw(st.sampled_from([small_pcap(), small_pcapng()])))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, len(octets) - 1))
        end = min(len(octets), at + data.draw(st.integers(0, 6)))
        octets[at:end] = data.draw(
            st.binary(max_size=12) | st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\xff" * 8])
        )
        if len(octets) < 5:
            return
    path = tmp_path / "x"
    path.write_bytes(octets)
    capture = open_capture(path)
    for batch, linktype in capture.batches(data.draw(st.integers(1, 4))):
        assert 0 <= linktype < 65536
        assert (batch.start >= 0).all()
        assert (batch.length >= 0).all()
        assert (batch.start + batch.length <= len(octets)).all()
        assert (batch.wire_length >= batch.length).all()
        assert np.isin(batch.direction, (0, 1)).all()
    assert capture.offset <= len(octets)
    assert (capture.damage is None) == (capture.offset == len(octets))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x is not a pcap or pcapng file (it is empty)"),
        (b"\xd4\xc3\xb2", "x is not a pcap or pcapng file"),
        (b"#!/bin/sh\n", "x is not a pcap or pcapng file"),
        (gzip.compress(small_pcap()), "x is compressed with gzip: decompress it first"),
        (b"\x28\xb5\x2f\xfd\x04", "x is compressed with zstd: decompress it first"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError) as problem:
        open_capture(tmp_path / "x")
    assert str(problem.value) == f"{tmp_path}/{message}"
    assert problem.value.status == 1


def test_paths_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "it is a folder"),
        (tmp_path / "pipe", "it is not a regular file"),
        (Path("a\0b"), "embedded null byte"),
    ):
        with pytest.raises(UserError, match=message) as problem:
            open_capture(path)
        assert str(problem.value).startswith(f"cannot read {path}: ")
