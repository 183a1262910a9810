"""tshark, tcpdump and capinfos read what we write; disks fill, readers leave, writers die."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import struct
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from lab import need
from tunnelbridge.batch import Batch, from_packets
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux import pcap_writer
from tunnelbridge.linux.pcap_writer import PcapWriter, open_pcap

ETHERNET = bytes.fromhex("020000000001020000000002") + b"\x88\xb5"


def frames(count: int, size: int = 60) -> list[bytes]:
    """Frames that differ in their octets and, a little, in their lengths."""
    return [
        ETHERNET + index.to_bytes(4, "big") + bytes([index % 251]) * (size - 18 + index % 3)
        for index in range(count)
    ]


def batch_of(packets: list[bytes]) -> Batch:
    batch = from_packets(packets)
    batch.timestamp = 1_700_000_000_123_456_789 + 1_000_000_007 * np.arange(len(packets))
    return batch


def parse(octets: bytes) -> list[tuple[int, int, bytes]]:
    """Read a nanosecond pcap record by record: (timestamp, original length, octets)."""
    magic, major, minor, _, _, _, linktype = struct.unpack_from("=IHHIIII", octets)
    assert (magic, major, minor, linktype) == (0xA1B23C4D, 2, 4, 1)
    found, offset = [], 24
    while offset < len(octets):
        seconds, nanoseconds, captured, original = struct.unpack_from("=IIII", octets, offset)
        packet = octets[offset + 16 : offset + 16 + captured]
        assert len(packet) == captured, "the last record is not whole"
        found.append((seconds * 10**9 + nanoseconds, original, packet))
        offset += 16 + captured
    return found


def packets_in(octets: bytes) -> list[bytes]:
    return [packet for _, _, packet in parse(octets)]


def write_file(path: Path, *batches: Batch) -> list[pcap_writer.Written]:
    fd = open_pcap(str(path))
    try:
        writer = PcapWriter(fd)
        return [writer.write(batch) for batch in batches]
    finally:
        os.close(fd)


def tshark(path: Path, *fields: str) -> list[list[str]]:
    options = [word for field in fields for word in ("-e", field)]
    lines = subprocess.run(
        ["tshark", "-n", "-r", path, "-T", "fields", *options],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [line.split("\t") for line in lines.splitlines()]


@pytest.mark.parametrize("count", [0, 1, 2, 511, 512, 513, 1024, 1025])
def test_every_batch_size_around_iov_max(tmp_path: Path, count: int) -> None:
    batch = batch_of(frames(count))
    (written,) = write_file(tmp_path / "x.pcap", batch)
    octets = (tmp_path / "x.pcap").read_bytes()
    assert written == (count, len(octets) - 24, None)
    expected = [
        (int(time), len(packet), packet)
        for time, packet in zip(batch.timestamp, frames(count), strict=True)
    ]
    assert parse(octets) == expected


@pytest.mark.parametrize("count", [0, 1, 340, 341, 342, 683])
def test_heads_come_before_bodies(tmp_path: Path, count: int) -> None:
    packets = frames(count)
    batch = batch_of([packet[index % 19 :] for index, packet in enumerate(packets)])
    heads = [packet[: index % 19] for index, packet in enumerate(packets)]
    batch.head = np.frombuffer(b"".join(heads), np.uint8)
    batch.head_length = np.array([len(head) for head in heads], np.int64)
    batch.head_start = np.cumsum(batch.head_length) - batch.head_length
    (written,) = write_file(tmp_path / "x.pcap", batch)
    assert written.packets == count
    assert packets_in((tmp_path / "x.pcap").read_bytes()) == packets


def test_other_programs_read_times_lengths_and_octets(tmp_path: Path) -> None:
    need("tshark", "tcpdump", "capinfos")
    path = tmp_path / "x.pcap"
    batch = batch_of(frames(5, 400))
    batch = batch.cut(100)
    write_file(path, batch.select(np.arange(3)), batch.select(np.arange(3, 5)))
    rows = tshark(path, "frame.time_epoch", "frame.cap_len", "frame.len", "frame.encap_type")
    lengths = [str(len(packet)) for packet in frames(5, 400)]
    times = [f"{int(time) // 10**9}.{int(time) % 10**9:09}" for time in batch.timestamp]
    assert rows == [[t, "100", length, "1"] for t, length in zip(times, lengths, strict=True)]
    dump = subprocess.run(
        ["tcpdump", "--nano", "-tt", "-xx", "-n", "-r", path],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert [line.split()[0] for line in dump.splitlines() if not line.startswith("\t")] == times
    words = [line.split(":", 1)[1] for line in dump.splitlines() if line.startswith("\t0x")]
    assert bytes.fromhex("".join(words)) == b"".join(p[:100] for p in frames(5, 400))
    info = subprocess.run(
        ["capinfos", "-M", "-c", "-t", "-E", path], check=True, capture_output=True, text=True
    ).stdout
    assert info.split("File type:")[1].split()[0] == "nsecpcap"
    assert info.split("Number of packets:")[1].split()[0] == "5"


def test_packets_longer_than_readers_accept_are_cut(tmp_path: Path) -> None:
    need("tshark")
    path = tmp_path / "x.pcap"
    write_file(path, batch_of([ETHERNET + bytes(300_000), *frames(1)]))
    assert tshark(path, "frame.cap_len", "frame.len") == [["262144", "300014"], ["60", "60"]]


def test_original_length_is_never_below_captured(tmp_path: Path) -> None:
    batch = batch_of(frames(2))
    batch.wire_length = np.array([3, 9000])
    write_file(tmp_path / "x.pcap", batch)
    assert [row[1] for row in parse((tmp_path / "x.pcap").read_bytes())] == [60, 9000]


def test_killed_writer_leaves_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    program = textwrap.dedent("""
        import sys, time
        from tunnelbridge.batch import from_packets
        from tunnelbridge.linux.pcap_writer import PcapWriter, open_pcap
        writer = PcapWriter(open_pcap(sys.argv[1]))
        for _ in range(3):
            writer.write(from_packets([bytes(100)] * 700))
        print("written", flush=True)
        sys.stdin.read()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"
        child.send_signal(signal.SIGKILL)
        child.wait(10)
    assert packets_in(path.read_bytes()) == [bytes(100)] * 2100


def test_full_disk_leaves_whole_records(root: None, tmp_path: Path) -> None:
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True
    )
    if mount.returncode:
        pytest.skip(f"cannot mount a small tmpfs: {mount.stderr.decode().strip()}")
    try:
        packets = frames(900, 100)
        path = tmp_path / "x.pcap"
        fd = open_pcap(str(path))
        writer = PcapWriter(fd)
        first = writer.write(batch_of(packets))
        again = writer.write(batch_of(packets))
        full = path.read_bytes()
        os.truncate(path, 24)  # somebody makes room
        os.lseek(fd, 0, os.SEEK_END)
        later = writer.write(batch_of(packets[:10]))
        os.close(fd)
        assert first.error == "disk-full"
        assert 0 < first.packets < 900
        assert again == (0, 0, "disk-full")
        assert packets_in(full) == packets[: first.packets]
        assert len(full) == 24 + first.octets
        assert later == (10, path.stat().st_size - 24, None)
        assert packets_in(path.read_bytes()) == packets[:10]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("limit", [0, 10, 24, 30, 40, 5000, 5011])
def test_file_size_limit_cuts_back_to_a_record(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "x.pcap"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    fd = open_pcap(str(path))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        writer = PcapWriter(fd)
        assert (writer.error is None) == (limit >= 24)
        written = writer.write(batch_of(frames(100)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert written.error == "file-limit"
    assert path.stat().st_size == (24 if limit >= 24 else 0) + written.octets
    rest = writer.write(batch_of(frames(100)[written.packets :]))
    os.close(fd)
    assert rest.error is None
    assert packets_in(path.read_bytes()) == frames(100)


def test_appending_standard_output_is_cut_back_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(b"precious")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 + 24 + 100, before[1]))
    try:
        written = PcapWriter(fd).write(batch_of(frames(5)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        os.close(fd)
    assert written == (1, 76, "file-limit")
    assert path.read_bytes()[:8] == b"precious"
    assert packets_in(path.read_bytes()[8:]) == frames(1)


def test_device_that_takes_nothing() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    writer = PcapWriter(fd)
    assert writer.error == "disk-full"
    assert writer.write(batch_of(frames(3))) == (0, 0, "disk-full")
    os.close(fd)


@pytest.mark.parametrize("blocking", [True, False])
def test_pipe_gets_every_octet_in_order(blocking: bool) -> None:
    reader, fd = os.pipe()
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(fd, blocking)
    pieces: list[bytes] = []

    def drain() -> None:
        while piece := os.read(reader, 1237):
            pieces.append(piece)

    thread = threading.Thread(target=drain)
    thread.start()
    packets = frames(1500, 333)
    try:
        written = PcapWriter(fd, patience=30).write(batch_of(packets))
    finally:
        os.close(fd)
        thread.join(30)
        os.close(reader)
    assert written == (1500, sum(map(len, pieces)) - 24, None)
    assert packets_in(b"".join(pieces)) == packets


def test_stalled_reader_is_given_up_and_finds_whole_records_later() -> None:
    reader, fd = os.pipe()
    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(fd, False)
    writer = PcapWriter(fd, patience=0.01)
    packets = frames(200, 333)
    expected: list[bytes] = []
    length = 24
    for _ in range(100):  # the kernel may take a little of a second attempt into the pipe's page
        written = writer.write(batch_of(packets))
        assert written.error == "reader-stalled"
        expected += packets[: written.packets]
        length += written.octets
        if written.packets == 0:
            break
    octets = os.read(reader, 65536)
    assert written == (0, 0, "reader-stalled")
    assert 24 < len(octets) < length, "the stall has cut a record"
    last = writer.write(batch_of(packets[:3]))
    assert last.error is None
    os.close(fd)
    while piece := os.read(reader, 65536):
        octets += piece
    os.close(reader)
    assert packets_in(octets) == expected + packets[:3]
    assert len(octets) == length + last.octets


def test_reader_that_leaves() -> None:
    reader, fd = os.pipe()
    writer = PcapWriter(fd)
    os.close(reader)
    assert writer.write(batch_of(frames(3))) == (0, 0, "reader-gone")
    os.close(fd)


def test_closed_descriptor_is_an_io_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)  # a directory: writing gives EBADF
    assert PcapWriter(fd).write(batch_of(frames(1))) == (0, 0, "io-error")
    os.close(fd)


def test_open_pcap_empties_and_restricts(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(b"old")
    path.unlink()
    mask = os.umask(0)
    try:
        fd = open_pcap(str(path))
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640
    assert not os.get_inheritable(fd)
    os.write(fd, b"something")
    os.close(fd)
    os.close(open_pcap(str(path)))
    assert path.stat().st_size == 0


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("no/such/folder.pcap", "No such file or directory"),
        (".", "Is a directory"),
        ("a\0b", "embedded null byte"),
        ("", "No such file or directory"),
    ],
)
def test_open_pcap_says_what_is_wrong(path: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"^cannot write .*: {reason}$") as problem:
        open_pcap(path)
    assert problem.value.status == 1


def run_to_stdout(stdout: int) -> bytes:
    program = textwrap.dedent("""
        import os, stat
        from tunnelbridge.batch import from_packets
        from tunnelbridge.linux.pcap_writer import PcapWriter, open_pcap
        fd = open_pcap("-")
        assert fd != 1
        assert os.get_blocking(fd) != stat.S_ISFIFO(os.fstat(1).st_mode)
        PcapWriter(fd).write(from_packets([bytes(60)] * 2))
        assert os.get_blocking(1), "other users of the pipe expect it to block"
    """)
    child = subprocess.run([sys.executable, "-c", program], stdout=stdout, stderr=subprocess.PIPE)
    assert child.returncode in (0, 1)
    return child.stderr


def test_standard_output_as_pipe_and_file(tmp_path: Path) -> None:
    reader, fd = os.pipe()
    assert run_to_stdout(fd) == b""
    os.close(fd)
    assert packets_in(os.read(reader, 65536)) == [bytes(60)] * 2
    os.close(reader)
    with (tmp_path / "x").open("wb") as file:
        assert run_to_stdout(file.fileno()) == b""
    assert packets_in((tmp_path / "x").read_bytes()) == [bytes(60)] * 2


def test_terminal_is_refused() -> None:
    leader, terminal = os.openpty()
    message = run_to_stdout(terminal).decode()
    os.close(leader)
    os.close(terminal)
    assert "UsageError: refusing to write packets to a terminal" in message
    assert UsageError("x").status == 2


def test_a_file_that_is_being_written_is_neither_shared_nor_emptied(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    first = open_pcap(str(path))
    try:
        os.write(first, b"kept")
        with pytest.raises(UserError, match="another program is writing it"):
            open_pcap(str(path))
        assert path.read_bytes() == b"kept"
    finally:
        os.close(first)
    again = open_pcap(str(path))
    os.close(again)
    assert path.read_bytes() == b""
