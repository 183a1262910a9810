"""Each pcap dialect, as libpcap reads it; what is plausible; what only the modified form knows."""

from __future__ import annotations

import struct
from pathlib import Path

import capture_judges as judges
import pytest
from capture_judges import MAGICS, Packet, read_path

from tunnelbridge.batch import INBOUND, OUTBOUND
from tunnelbridge.capture.reader import open_capture

RECORDS = [
    (1_700_000_000, 999_999, 60, b"x" * 60),
    (0, 0, 0, b""),
    (2**32 - 1, 1, 1514, b"y" * 77),
    (5, 999_999, 3, b"odd"),
]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", MAGICS)
def test_every_magic(tmp_path: Path, order: str, kind: str) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(judges.pcap(order, kind, RECORDS))
    ours, damage = read_path(path)
    assert damage is None
    unit = MAGICS[kind][1]
    assert ours == [
        Packet(seconds * 10**9 + fraction * unit, original, data)
        for seconds, fraction, original, data in RECORDS
    ]
    theirs, error, _ = judges.libpcap_reads(path)
    assert error is None
    assert [p.octets for p in ours] == [p.octets for p in theirs]
    for packet, judged in zip(ours, theirs, strict=True):
        assert packet.timestamp == judged.timestamp
        assert packet.wire_length == judged.wire_length


@pytest.mark.parametrize("order", ["<", ">"])
def test_modified_records_tell_the_direction(tmp_path: Path, order: str) -> None:
    kinds = [0, 4, 1, 3, 4]
    octets = judges.pcap(order, "modified", [])
    for kind in kinds:  # ifindex, protocol, packet type (linux/if_packet.h), padding
        octets += struct.pack(order + "IIIIIHBB", 1, 2, 4, 4, 4, 0x800, kind, 0) + b"data"
    (tmp_path / "x").write_bytes(octets)
    ((batch, _),) = open_capture(tmp_path / "x").batches()
    assert batch.direction.tolist() == [OUTBOUND if kind == 4 else INBOUND for kind in kinds]


@pytest.mark.parametrize(
    ("field", "linktype"), [(1, 1), (276, 276), (0x5400_0001, 1), (0xFFFF_0065, 101)]
)
def test_linktype_is_the_low_half(tmp_path: Path, field: int, linktype: int) -> None:
    (tmp_path / "x").write_bytes(judges.pcap("<", "micro", RECORDS, linktype=field))
    assert [found for _, found in open_capture(tmp_path / "x").batches()] == [linktype]


@pytest.mark.parametrize(
    ("snaplen", "length", "possible"),
    [
        (65535, 65549, True),
        (0, 262144, True),
        (96, 262145, False),
        (600_000, 524_294, True),
        (600_000, 600_001, False),
    ],
)
def test_plausible_lengths(tmp_path: Path, snaplen: int, length: int, possible: bool) -> None:
    path = tmp_path / "x"
    records = [(1, 1, 4, b"good"), (2, 2, length, bytes(length)), (3, 3, 4, b"more")]
    path.write_bytes(judges.pcap(">", "micro", records, snaplen=snaplen))
    found, damage = read_path(path)
    if possible:
        assert [len(p.octets) for p in found] == [4, length, 4]
        assert damage is None
    else:
        assert [p.octets for p in found] == [b"good"]
        assert damage is not None
        assert damage.startswith(f"record 2 at offset 44 is implausible: {length} octets")


def test_claimed_length_of_four_gigabytes_is_implausible(tmp_path: Path) -> None:
    octets = judges.pcap("<", "micro", [(1, 1, 4, b"good")], snaplen=0xFFFFFFFF)
    (tmp_path / "x").write_bytes(octets + struct.pack("<IIII", 1, 1, 0xFFFFFFF0, 4) + b"some")
    found, damage = read_path(tmp_path / "x")
    assert len(found) == 1
    assert damage is not None
    assert "implausible" in damage


def test_original_length_is_at_least_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(judges.pcap("<", "micro", [(1, 1, 2, b"four"), (1, 1, 9, b"4")]))
    assert [p.wire_length for p in read_path(tmp_path / "x")[0]] == [4, 9]
