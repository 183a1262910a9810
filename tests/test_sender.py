"""``tunnelbridge send`` as a whole, from a file to a socket on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import outer
import pcap_files
import pytest
import structlog

from tunnelbridge import console, sender
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.sender import Sender, SendOptions

SECOND = 10**9


def numbered(number: int) -> bytes:
    packet = outer.ipv4(outer.udp(number.to_bytes(8), 1, 2), 17, "10.0.0.1", "10.0.0.2")
    return outer.frame(packet)


@pytest.fixture
def far() -> Iterator[socket.socket]:
    """Return a socket on loopback that VXLAN can be sent to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def to(far: socket.socket) -> str:
    return f"vxlan://127.0.0.1:{far.getsockname()[1]}"


def arrived(far: socket.socket) -> list[bytes]:
    """Return the frames that arrived, VXLAN headers taken off."""
    found = []
    while True:
        try:
            found.append(far.recv(65536)[8:])
        except BlockingIOError:
            return found


def send(capsys: pytest.CaptureFixture[str], **options: Any) -> list[dict[str, Any]]:
    """Send, and return what was logged."""
    console.configure_logging(verbose=False)
    sender.send(SendOptions(**options))
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - numbers, not paths


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"give interfaces \(-i\) or a capture file \(-r\), one of them"),
        ({"to": ["gre://x"]}, "give interfaces"),
        ({"interfaces": ["a"], "file": Path("x"), "to": ["gre://x"]}, "one of them"),
        ({"interfaces": ["a"]}, "give at least one target: --to TUNNEL"),
        ({"interfaces": ["a", "b", "a"], "to": ["gre://x"]}, "an interface is named twice"),
        ({"file": Path("x"), "to": ["gre://x"], "speed": "fast"}, "--speed fast: expected"),
    ],
)
def test_options_that_do_not_fit_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SendOptions(**options).validate()


def test_a_file_to_its_end(
    far: socket.socket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [numbered(number) for number in range(1500)]
    path = pcap_files.write(tmp_path / "x.pcap", [*frames[:700], b"short", *frames[700:]])
    stats = tmp_path / "stats.json"
    send(capsys, file=path, to=[to(far)], speed="max")  # libuv keeps a pipe from its first loop on
    assert arrived(far) == frames
    before = descriptors()

    done, tunnel = send(capsys, file=path, to=[to(far)], speed="max", stats=str(stats))

    assert arrived(far) == frames
    assert done["reason"] == "end of file"
    assert done["balanced"] is True
    assert done["refused"] == {"frame-short": 1}
    assert tunnel["sent"] == 1500
    ledger = json.loads(stats.read_text())
    assert (ledger["received"], ledger["cloned"], ledger["segments"]) == (1501, 1500, 1500)
    assert ledger["tunnels"][0]["octets"] == sum(map(len, frames))
    assert descriptors() == before


def test_the_count_ends_it_at_once_whatever_the_pace(
    far: socket.socket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packets = [(number * 3600 * SECOND, numbered(number)) for number in (0, 0, 0, 1, 2)]
    path = pcap_files.write(tmp_path / "x.pcap", packets)

    done, _ = send(capsys, file=path, to=[to(far)], count=2)

    assert arrived(far) == [numbered(0)] * 2
    assert done["reason"] == "count"
    assert (done["received"], done["cloned"]) == (2, 2)


def test_the_duration_ends_it(
    far: socket.socket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packets = [(number * 3600 * SECOND, numbered(number)) for number in range(3)]
    path = pcap_files.write(tmp_path / "x.pcap", packets)

    done, _ = send(capsys, file=path, to=[to(far)], duration=0.05)

    assert arrived(far) == [numbered(0)]
    assert done["reason"] == "duration"


def test_filter_snaplen_and_damage(
    far: socket.socket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arp = outer.MACS + bytes.fromhex("0806") + bytes(46)
    path = pcap_files.write(tmp_path / "x.pcap", [numbered(1), arp, numbered(2)], tail=b"damage")

    warning, done, tunnel = send(
        capsys, file=path, to=[to(far)], expression="ip", snaplen=30, speed="max"
    )

    assert arrived(far) == [numbered(1)[:30], numbered(2)[:30]]
    assert warning["level"] == "warning"
    assert str(path) in warning["event"]
    assert (done["not_matched"], done["balanced"]) == (1, True)
    assert tunnel["truncated"] == 2


def test_signals(far: socket.socket, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packets = [(number * 3600 * SECOND, numbered(number)) for number in range(3)]
    path = pcap_files.write(tmp_path / "x.pcap", packets)
    stats = tmp_path / "stats.json"
    console.configure_logging(verbose=False)
    running = Sender(SendOptions(file=path, to=[to(far)], stats=str(stats)))

    async def steer() -> None:
        task = asyncio.create_task(running.run())
        while not running.ledger.cloned:  # noqa: ASYNC110
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGUSR1)
        while not stats.exists():  # noqa: ASYNC110
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGTERM)
        await task

    asyncio.run(asyncio.wait_for(steer(), 10))
    running.report()

    assert json.loads(stats.read_text())["cloned"] == 1
    done = json.loads(capsys.readouterr().err.splitlines()[0])
    assert done["reason"] == "SIGTERM"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expression": "no such thing"}, "^filter "),
        ({"to": ["gre://127.0.0.1", "vxlan://127.0.0.1?local=192.0.2.1"]}, "not an address of"),
        ({"stats": "/nosuch/stats.json"}, "^cannot write /nosuch/stats.json: no such directory"),
        ({"file": Path("/nosuch/x.pcap")}, "^cannot read /nosuch/x.pcap: No such file"),
        ({"file": None, "interfaces": ["nosuch0"]}, "^no interface named nosuch0"),
    ],
)
def test_mistakes_leave_nothing_open(
    options: dict[str, Any], message: str, tmp_path: Path, root: None
) -> None:
    path = pcap_files.write(tmp_path / "x.pcap", [numbered(1)])
    before = descriptors()

    with pytest.raises(UserError, match=message) as told:
        sender.send(SendOptions(**{"file": path, "to": ["gre://127.0.0.1"]} | options))

    assert "\n" not in str(told.value)
    assert descriptors() == before
