"""pcapng blocks built octet by octet; tshark and exact arithmetic are the judges."""

from __future__ import annotations

import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import capture_judges as judges
import numpy as np
import pytest
from capture_judges import Packet, enhanced, interface, obsolete, option, read_path, section, simple

from lab import need
from tunnelbridge.batch import INBOUND, OUTBOUND
from tunnelbridge.capture.reader import open_capture
from tunnelbridge.capture.timestamps import Resolution, nanoseconds

ORDERS = pytest.mark.parametrize("order", ["<", ">"])
FRAME = bytes.fromhex("02000000000102000000000288b5") + bytes(range(46))


def save(tmp_path: Path, *blocks: bytes) -> Path:
    path = tmp_path / "x.pcapng"
    path.write_bytes(b"".join(blocks))
    return path


def exact(units: int, exponent: int, offset: int) -> int:
    """Nanoseconds by the definition."""
    base = 2 if exponent & 0x80 else 10
    return offset * 10**9 + int(Fraction(units * 10**9, base ** (exponent & 0x7F)))


@pytest.mark.parametrize("exponent", [*range(25), 127, *(0x80 + n for n in [0, 1, 10, 20, 30, 34])])
def test_timestamps_of_every_resolution(exponent: int) -> None:
    base = 2 if exponent & 0x80 else 10
    second = base ** (exponent & 0x7F)
    units = [0, 1, 999, 12345678901234567, 2**63, 2**64 - 1, 1_700_000_000 * second + second // 3]
    units = [n for n in units if n < 2**64 and exact(n, exponent, 0) < 2**63]
    for offset in (0, 3600, -7200):
        ours = nanoseconds(np.array(units, np.uint64), Resolution(exponent, offset))
        assert ours.tolist() == [exact(n, exponent, offset) for n in units]


@pytest.mark.parametrize("bits", [35, 40, 63, 64, 97, 98, 127])
def test_timestamps_finer_than_needed_are_within_a_nanosecond(bits: int) -> None:
    units = [0, 1, 2**bits - 1, 5 * 2**bits + 2**bits // 3, 2**64 - 1]
    units = [n for n in units if n < 2**64]
    ours = nanoseconds(np.array(units, np.uint64), Resolution(0x80 | bits))
    for found, number in zip(ours.tolist(), units, strict=True):
        assert 0 <= exact(number, 0x80 | bits, 0) - found <= 1


def test_timestamps_that_do_not_fit_wrap_silently() -> None:
    units = np.array([2**64 - 1, 2**63], np.uint64)
    for exponent in (0, 6, 0x80, 0x81):
        for offset in (0, 2**63 - 1, -(2**63)):
            assert nanoseconds(units, Resolution(exponent, offset)).dtype == np.int64


@ORDERS
def test_tshark_agrees_about_time(tmp_path: Path, order: str) -> None:
    need("tshark")
    second = {0: 1, 3: 10**3, 6: 10**6, 9: 10**9, 0x8A: 2**10, 0x94: 2**20, 0x9E: 2**30}
    blocks = [section(order)]
    for exponent in second:
        resolution = option(order, 9, bytes([exponent]))
        offset = option(order, 14, struct.pack(order + "q", 1000 if exponent % 2 else -1000))
        blocks.append(interface(order, options=resolution + offset + option(order, 0, b"")))
    for number, unit in enumerate(second.values()):
        blocks.append(enhanced(order, number, 1_234_567_890 * unit + unit * 5 // 7, FRAME))
    path = save(tmp_path, *blocks)
    assert read_path(path) == (judges.tshark_reads(path), None)


@ORDERS
def test_every_kind_of_packet_block(tmp_path: Path, order: str) -> None:
    need("tshark")
    path = save(
        tmp_path,
        section(order),
        interface(order, snaplen=50),
        judges.block(order, 4, b"\0\0\0\0"),  # names
        enhanced(order, 0, 1_700_000_000_000_001, FRAME, 1500),
        simple(order, FRAME[:50], 60),
        obsolete(order, 0, 1_700_000_000_000_002, FRAME[:31]),
        judges.block(order, 5, struct.pack(order + "III", 0, 0, 0)),  # statistics
        simple(order, FRAME[:41]),
        enhanced(order, 0, 1_700_000_000_000_003, FRAME[:14]),
    )
    ours, damage = read_path(path)
    assert ours == [
        Packet(1_700_000_000_000_001_000, 1500, FRAME),
        Packet(0, 60, FRAME[:50]),
        Packet(1_700_000_000_000_002_000, 31, FRAME[:31]),
        Packet(0, 41, FRAME[:41]),
        Packet(1_700_000_000_000_003_000, 14, FRAME[:14]),
    ]
    assert damage is None
    assert ours == judges.tshark_reads(path)


def test_sections_have_their_own_order_and_interfaces(tmp_path: Path) -> None:
    need("tshark")
    blocks = []
    for order, resolution in (("<", 9), (">", 3), ("<", 6)):
        blocks += [
            section(order),
            interface(order, options=option(order, 9, bytes([resolution]))),
            enhanced(order, 0, 1_700_000_000, FRAME),
        ]
    path = save(tmp_path, *blocks)
    ours, damage = read_path(path)
    assert damage is None
    assert [p.timestamp for p in ours] == [1_700_000_000, 1_700_000_000 * 10**6, 1_700_000_000_000]
    assert ours == judges.tshark_reads(path)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_linktypes_come_apart_in_file_order(tmp_path: Path, size: int) -> None:
    numbers = [0, 0, 1, 2, 2, 0, 1, 1]
    path = save(
        tmp_path,
        section("<"),
        interface("<", 1), interface("<", 101), interface("<", 1),
        *(enhanced("<", number, index, FRAME) for index, number in enumerate(numbers)),
    )  # fmt: skip
    found = []
    for batch, linktype in open_capture(path).batches(size):
        assert 0 < len(batch) <= size
        found += [(int(time) // 1000, linktype) for time in batch.timestamp]
    assert found == [(index, 101 if n == 1 else 1) for index, n in enumerate(numbers)]


def test_interface_after_packets_of_another(tmp_path: Path) -> None:
    late = [section("<"), interface("<"), enhanced("<", 0, 1, FRAME)]
    late += [interface("<", 276), enhanced("<", 1, 2, FRAME), enhanced("<", 0, 3, FRAME)]
    kinds = [kind for _, kind in open_capture(save(tmp_path, *late)).batches()]
    assert kinds == [1, 276, 1]


@ORDERS
def test_direction_is_found_among_the_options(tmp_path: Path, order: str) -> None:
    need("tshark")
    comment = option(order, 1, b"five!")
    empty = option(order, 1, b"")
    end = option(order, 0, b"")

    def flags(word: int) -> bytes:
        return option(order, 2, struct.pack(order + "I", word))

    cases = [
        (b"", INBOUND),
        (flags(1), INBOUND),
        (flags(2), OUTBOUND),
        (flags(2) + end, OUTBOUND),
        (flags(0xFFFF_FFFE), OUTBOUND),
        (comment + flags(2) + end, OUTBOUND),
        (empty + comment + empty + flags(2), OUTBOUND),
        (comment + flags(1) + comment, INBOUND),
        (flags(0), INBOUND),
        (end + flags(2), INBOUND),
    ]
    blocks = [enhanced(order, 0, 1, FRAME[:n], options=o) for n, (o, _) in enumerate(cases, 14)]
    path = save(tmp_path, section(order), interface(order), *blocks)
    ((batch, _),) = open_capture(path).batches()
    assert batch.direction.tolist() == [direction for _, direction in cases]
    lines = subprocess.run(
        ["tshark", "-n", "-r", path, "-T", "fields", "-e", "frame.packet_flags_direction"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    judged = [OUTBOUND if int(line or "0", 0) == 2 else INBOUND for line in lines]
    assert batch.direction.tolist() == judged


@pytest.mark.parametrize(
    "options",
    [
        b"\x02\x00\xff\xff\x02\x00\x00\x00",  # longer than the block
        b"\x02\x00\x03\x00\x02\x00\x00\x00",  # too short for flags
        b"\x02\x00\x04\x00",  # its value would be the block's trailing length
        b"\x01\x00\x00\x00" * 5000 + b"\x02\x00\x04\x00\x02\x00\x00\x00",  # a flood
    ],
)
def test_odd_options_say_nothing(tmp_path: Path, options: bytes) -> None:
    path = save(
        tmp_path,
        section("<"),
        interface("<"),
        enhanced("<", 0, 1, FRAME, options=options),
        enhanced("<", 0, 2, FRAME[:33], options=b"\x02\x00\x04\x00\x02\x00\x00\x00"),
    )
    capture = open_capture(path)
    ((batch, _),) = capture.batches()
    assert batch.direction.tolist() == [INBOUND, OUTBOUND]
    assert capture.damage is None


@pytest.mark.parametrize(
    "options",
    [
        b"\x09\x00\x01\x00",  # no room for the value
        b"\x09\x00\xff\xff\x09\x00\x00\x00",
        b"\x09\x00\x02\x00\x09\x09\x00\x00",  # not one octet
        b"\x0e\x00\x04\x00\x09\x09\x00\x00",  # not eight octets
        b"\x00\x00\x00\x00\x09\x00\x01\x00\x09\x00\x00\x00",  # after the end
    ],
)
def test_odd_interface_options_change_nothing(tmp_path: Path, options: bytes) -> None:
    path = save(tmp_path, section("<"), interface("<", options=options), enhanced("<", 0, 5, FRAME))
    assert read_path(path) == ([Packet(5000, 60, FRAME)], None)


def broken(position: int, word: int) -> bytes:
    """An enhanced packet block with one of its words replaced."""
    octets = bytearray(enhanced("<", 0, 2, FRAME))
    struct.pack_into("<I", octets, position % len(octets), word)
    return bytes(octets)


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (broken(4, 90), "has an impossible length of 90 octets"),
        (broken(4, 28), "has an impossible length of 28 octets"),
        (broken(4, 0), "has an impossible length of 0 octets"),
        (broken(4, 0xFFFFFFFC), "is cut short (needs 4294967292 octets, 184 left)"),
        (broken(-4, 88), "does not end with its length"),
        (broken(8, 1), "names an interface of which there are 1"),
        (broken(20, 61), "is shorter than the packet in it"),
        (broken(20, 0xFFFFFFFF), "is shorter than the packet in it"),
        (
            judges.block("<", 0x0A0D0D0A, b"no magic" * 2),
            "has an unknown byte-order magic 6e6f206d",
        ),
        (judges.block("<", 99, b"")[:8] + b"\0" * 4, "does not end with its length"),
        (judges.block("<", 1, b""), "has an impossible length of 12 octets"),
    ],
)
@pytest.mark.parametrize("size", [1, 1024])
def test_damage_ends_the_reading(tmp_path: Path, bad: bytes, what: str, size: int) -> None:
    if what.startswith("is cut"):
        what = what.replace("184", str(len(bad) + len(enhanced("<", 0, 3, FRAME))))
    path = save(
        tmp_path, section("<"), interface("<"), enhanced("<", 0, 1, FRAME), bad,
        enhanced("<", 0, 3, FRAME),
    )  # fmt: skip
    capture = open_capture(path)
    assert judges.read_all(capture, size) == [Packet(1000, 60, FRAME)]
    assert capture.damage == f"block at offset 140 {what}"
    assert capture.offset == 140


@pytest.mark.parametrize(
    "packet", [simple("<", FRAME), enhanced("<", 0, 1, FRAME), obsolete("<", 0, 1, FRAME)]
)
def test_packet_before_any_interface(tmp_path: Path, packet: bytes) -> None:
    found, damage = read_path(save(tmp_path, section("<"), packet))
    assert found == []
    assert damage == "block at offset 28 names an interface of which there are 0"


def test_packet_before_its_own_interface(tmp_path: Path) -> None:
    blocks = [section("<"), interface("<"), enhanced("<", 1, 1, FRAME), interface("<")]
    found, damage = read_path(save(tmp_path, *blocks))
    assert found == []
    assert damage == "block at offset 48 names an interface of which there are 1"


def test_original_length_is_at_least_what_is_there(tmp_path: Path) -> None:
    path = save(tmp_path, section("<"), interface("<"), enhanced("<", 0, 1, FRAME, 5))
    assert read_path(path) == ([Packet(1000, 60, FRAME)], None)


def test_simple_block_has_no_time_whatever_the_offset(tmp_path: Path) -> None:
    late = option("<", 14, struct.pack("<q", 1000))
    path = save(tmp_path, section("<"), interface("<", options=late), simple("<", FRAME))
    assert read_path(path) == ([Packet(0, 60, FRAME)], None)


def test_offset_follows_the_batches(tmp_path: Path) -> None:
    path = save(tmp_path, section("<"), interface("<"), *[enhanced("<", 0, 1, FRAME)] * 3)
    capture = open_capture(path)
    assert [capture.offset for _ in capture.batches(1)] == [140, 232, 324]
    assert capture.offset == capture.total_octets


def test_simple_block_at_the_very_end(tmp_path: Path) -> None:
    path = save(tmp_path, section("<"), interface("<"), simple("<", b"", 0))
    assert read_path(path) == ([Packet(0, 0, b"")], None)
