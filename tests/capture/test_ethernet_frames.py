"""Other link types as Ethernet, against scalar code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnelbridge.batch import Batch, from_packets
from tunnelbridge.capture.ethernet import as_ethernet
from tunnelbridge.errors import UserError

MACS = bytes.fromhex("020000000002 020000000001")
BARE_IP = [12, 14, 101, 228, 229]


def bare(packet: bytes) -> bytes:
    version = packet[0] >> 4 if packet else 0
    return MACS + (b"\x86\xdd" if version == 6 else b"\x08\x00") + packet


def sll(packet: bytes) -> bytes:
    """Linux cooked: 16 octets, the EtherType last (LINKTYPE_LINUX_SLL)."""
    return MACS + packet[14:16] + packet[16:]


def sll2(packet: bytes) -> bytes:
    """Linux cooked, version 2: 20 octets, the EtherType first (LINKTYPE_LINUX_SLL2)."""
    return MACS + packet[:2] + packet[20:]


KINDS: dict[int, tuple[Callable[[bytes], bytes], int]] = {
    101: (bare, 0),
    113: (sll, 16),
    276: (sll2, 20),
}


def check(linktype: int, packets: list[bytes], longer: int = 0) -> Batch:
    expected, header = KINDS[101 if linktype in BARE_IP else linktype]
    batch = from_packets(packets)
    batch.timestamp = np.arange(len(packets)) * 7
    batch.wire_length = batch.wire_length + longer
    batch.memory.flags.writeable = False

    frames = as_ethernet(batch, linktype)

    octets = [frames.octets(number) for number in range(len(frames))]
    wanted = [expected(packet) if len(packet) >= max(header, 1) else b"" for packet in packets]
    assert octets == wanted
    assert frames.timestamp.tolist() == batch.timestamp.tolist()
    whole = [len(packet) >= max(header, 1) for packet in packets]
    grown = [len(f) + longer for f, is_whole in zip(wanted, whole, strict=True) if is_whole]
    assert frames.wire_length[whole].tolist() == grown
    return frames


ip_packets = st.one_of(
    st.binary(max_size=60),
    st.builds(lambda first, rest: bytes([first]) + rest, st.sampled_from([0x45, 0x60]),
              st.binary(max_size=60)),
)  # fmt: skip


@given(st.sampled_from(BARE_IP), st.lists(ip_packets, max_size=6), st.integers(0, 9))
def test_bare_ip(linktype: int, packets: list[bytes], longer: int) -> None:
    if packets and not any(packets):
        packets.append(b"E")  # a file has octets
    check(linktype, packets, longer)


@given(st.sampled_from([113, 276]), st.lists(st.binary(max_size=60), max_size=6), st.integers(0, 9))
def test_linux_cooked(linktype: int, packets: list[bytes], longer: int) -> None:
    check(linktype, packets, longer)


@pytest.mark.parametrize("linktype", [101, 113, 276])
@pytest.mark.parametrize("count", [0, 1, 1024, 1025])
def test_sizes(linktype: int, count: int) -> None:
    check(linktype, [bytes([0x45]) + bytes(range(20 + number % 30)) for number in range(count)])


def test_ethernet_stays_as_it_is() -> None:
    batch = from_packets([b"x" * 14])

    assert as_ethernet(batch, 1) is batch


@pytest.mark.parametrize("linktype", [0, 105, 127, 147, 65535])
def test_what_cannot_become_ethernet(linktype: int) -> None:
    with pytest.raises(UserError, match=f"^link type {linktype} cannot be carried as Ethernet"):
        as_ethernet(from_packets([b"x"]), linktype)
