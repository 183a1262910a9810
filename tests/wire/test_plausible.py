"""What looks like a frame or a packet, and what only begins like one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from golden import FRAME, PACKET

from tunnelbridge.wire.plausible import is_frame, is_ipv4, is_ipv6, is_llc_frame

MACS = FRAME[:12]
V6 = bytes.fromhex("60000000 0010 1140" + "20010db8" * 8) + bytes(16)
OPTIONS = bytes.fromhex("46000018 00000000 40110000 c0a80001 c0a80002 01010101")


def tell(test: Callable[..., Any], octets: bytes) -> bool:
    """Ask about octets between rubbish; the rubbish must not matter."""
    answers = set()
    for before, after in ((b"", b""), (b"\x45" * 3, b"\x08\x00" * 32), (b"\xff", b"\xff" * 64)):
        memory = np.frombuffer(before + octets + after, np.uint8)
        start = np.array([len(before)])
        answers.add(bool(test(memory, start, start + len(octets))[0]))
    assert len(answers) == 1
    return answers.pop()


@pytest.mark.parametrize(
    ("test", "octets", "answer"),
    [
        (is_frame, FRAME, True),
        (is_frame, FRAME[:14], True),
        (is_frame, FRAME[:13], False),
        (is_frame, b"", False),
        (is_frame, MACS + b"\x81\x00" + bytes(50), True),
        (is_frame, MACS + b"\x12\x34" + bytes(50), False),
        (is_frame, MACS + b"\x00\x26" + bytes(46), False),
        (is_llc_frame, MACS + b"\x00\x26" + bytes(46), True),
        (is_llc_frame, MACS + b"\x00\x26" + bytes(38), True),
        (is_llc_frame, MACS + b"\x00\x26" + bytes(37), False),
        (is_llc_frame, MACS + b"\x00\x26" + bytes(38 + 47), False),
        (is_llc_frame, MACS + b"\x05\xdc" + bytes(1500), True),
        (is_llc_frame, MACS + b"\x05\xdd" + bytes(1501), False),
        (is_llc_frame, MACS + b"\x00\x02" + bytes(46), False),
        (is_llc_frame, FRAME, False),
        (is_llc_frame, b"", False),
        (is_ipv4, PACKET, True),
        (is_ipv4, PACKET[:20], True),
        (is_ipv4, PACKET[:19], False),
        (is_ipv4, b"", False),
        (is_ipv4, PACKET[:8] + b"\x41" + PACKET[9:], False),
        (is_ipv6, V6, True),
        (is_ipv6, V6[:40], True),
        (is_ipv6, V6[:39], False),
        (is_ipv6, b"\x50" + V6[1:], False),
        (is_ipv6, V6 + bytes(200), False),
        (is_ipv6, b"", False),
    ],
)
def test_plausible(test: Callable[..., Any], octets: bytes, answer: bool) -> None:
    assert tell(test, octets) is answer


def test_options_belong_to_the_checksum() -> None:
    words = [int.from_bytes(OPTIONS[i : i + 2]) for i in range(0, 24, 2)]
    right = (0xFFFF - sum(words) % 0xFFFF).to_bytes(2)
    assert tell(is_ipv4, OPTIONS[:10] + right + OPTIONS[12:])
    assert not tell(is_ipv4, OPTIONS[:10] + right + OPTIONS[12:20] + bytes(4))
    assert not tell(is_ipv4, OPTIONS[:10] + right + OPTIONS[12:20])


@pytest.mark.parametrize("test", [is_frame, is_llc_frame, is_ipv4, is_ipv6])
def test_sizes(test: Callable[..., Any]) -> None:
    memory = np.frombuffer(FRAME * 3, np.uint8)
    for count in (0, 1, 3):
        start = np.arange(count) * len(FRAME)
        answers = test(memory, start, start + len(FRAME))
        assert answers.tolist() == [test is is_frame] * count
