"""Other readers of capture files (libpcap, tshark) and an obvious scalar writer of pcapng blocks."""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tunnelbridge.capture.reader import Capture, open_capture


class Packet(NamedTuple):
    timestamp: int
    wire_length: int
    octets: bytes


def read_all(capture: Capture, size: int = 1024) -> list[Packet]:
    """Our reader's packets, one by one."""
    found = []
    for batch, _ in capture.batches(size):
        assert 0 < len(batch) <= size
        for index in range(len(batch)):
            time, length = int(batch.timestamp[index]), int(batch.wire_length[index])
            octets = batch.octets(index)
            assert len(octets) == batch.length[index]
            found.append(Packet(time, length, octets))
    return found


def read_path(path: Path, size: int = 1024) -> tuple[list[Packet], str | None]:
    capture = open_capture(path)
    return read_all(capture, size), capture.damage


class _Header(ctypes.Structure):
    _fields_ = (
        ("seconds", ctypes.c_long),
        ("fraction", ctypes.c_long),
        ("captured", ctypes.c_uint32),
        ("original", ctypes.c_uint32),
    )


def libpcap() -> ctypes.CDLL:
    """libpcap itself, or a skip."""
    name = ctypes.util.find_library("pcap")
    for candidate in filter(None, (name, "libpcap.so.0.8", "libpcap.so.1")):
        try:
            library = ctypes.CDLL(candidate)
        except OSError:
            continue
        library.pcap_open_offline_with_tstamp_precision.restype = ctypes.c_void_p
        library.pcap_geterr.restype = ctypes.c_char_p
        return library
    pytest.skip("needs libpcap, which is not installed")


def libpcap_reads(path: Path) -> tuple[list[Packet], str | None, int]:
    """What libpcap reads of a file (times in ns), its error (None at a proper end), its snaplen.

    libpcap cuts packets that exceed the file's own snap length.
    """
    library, message = libpcap(), ctypes.create_string_buffer(256)
    opened = library.pcap_open_offline_with_tstamp_precision(str(path).encode(), 1, message)
    if not opened:
        return [], message.value.decode(), 0
    handle = ctypes.c_void_p(opened)
    header, data = ctypes.POINTER(_Header)(), ctypes.c_void_p()
    found = []
    while (code := library.pcap_next_ex(handle, ctypes.byref(header), ctypes.byref(data))) == 1:
        now = header.contents
        octets = ctypes.string_at(data, now.captured) if now.captured else b""
        time = _unsigned(now.seconds) * 10**9 + _unsigned(now.fraction)
        found.append(Packet(time, now.original, octets))
    error = None if code == -2 else library.pcap_geterr(handle).decode()
    snaplen = library.pcap_snapshot(handle)
    library.pcap_close(handle)
    return found, error, snaplen


def _unsigned(number: int) -> int:
    """Undo that libpcap 1.10 reads a pcap file's unsigned times as signed."""
    return number % 2**32 if number < 0 else number


def tshark_reads(path: Path) -> list[Packet]:
    """What tshark reads of a file; a packet without a time has time 0."""
    done = subprocess.run(
        ["tshark", "-n", "-r", path, "-T", "json", "-x", "-j", "frame"],
        capture_output=True, text=True,
    )  # fmt: skip
    found = []
    for record in json.loads(done.stdout, object_pairs_hook=_first_wins):
        layers = record["_source"]["layers"]
        frame = layers["frame"]
        if "frame.encap_type" not in frame:  # a custom block or the like, not a packet
            continue
        seconds, _, fraction = frame.get("frame.time_epoch", "0.0").partition(".")
        raw = layers.get("frame_raw", [""])[0]
        time = int(seconds) * 10**9 + int(fraction.ljust(9, "0"))
        found.append(Packet(time, int(frame["frame.len"]), bytes.fromhex(raw)))
    return found


def _first_wins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    return dict(reversed(pairs))


def block(order: str, kind: int, body: bytes) -> bytes:
    """A pcapng block around ``body``."""
    total = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + total + body + total


def option(order: str, code: int, value: bytes) -> bytes:
    return struct.pack(order + "HH", code, len(value)) + value + bytes(-len(value) % 4)


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str, linktype: int = 1, snaplen: int = 0, options: bytes = b"") -> bytes:
    return block(order, 1, struct.pack(order + "HHI", linktype, 0, snaplen) + options)


def enhanced(
    order: str, number: int, time: int, data: bytes, original: int = 0, options: bytes = b""
) -> bytes:
    fixed = struct.pack(
        order + "IIIII", number, time >> 32, time & 0xFFFFFFFF, len(data), original or len(data)
    )
    return block(order, 6, fixed + data + bytes(-len(data) % 4) + options)


def obsolete(order: str, number: int, time: int, data: bytes, options: bytes = b"") -> bytes:
    fixed = struct.pack(
        order + "HHIIII", number, 0, time >> 32, time & 0xFFFFFFFF, len(data), len(data)
    )
    return block(order, 2, fixed + data + bytes(-len(data) % 4) + options)


def simple(order: str, data: bytes, original: int = 0) -> bytes:
    fixed = struct.pack(order + "I", original or len(data))
    return block(order, 3, fixed + data + bytes(-len(data) % 4))


MAGICS = {
    "micro": (0xA1B2C3D4, 1000, 16),
    "nano": (0xA1B23C4D, 1, 16),
    "modified": (0xA1B2CD34, 1000, 24),
}


def pcap(
    order: str, kind: str, records: list[tuple[int, int, int, bytes]], *,
    snaplen: int = 65535, linktype: int = 1,
) -> bytes:  # fmt: skip
    """A pcap file of (seconds, fraction, original length, data) records."""
    magic, _, span = MAGICS[kind]
    octets = struct.pack(order + "IHHIIII", magic, 2, 4, 0, 0, snaplen, linktype)
    for seconds, fraction, original, data in records:
        octets += struct.pack(order + "IIII", seconds, fraction, len(data), original)
        octets += bytes(span - 16) + data
    return octets
