"""``tunnelbridge send`` as a whole, from a file to a socket on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import outer
import pcap_files
import pytest
import recording
import structlog
import uvloop

import lab
from tunnelbridge import console, sender, targets
from tunnelbridge.batch import Batch
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux.transmit import Sent
from tunnelbridge.pipeline import Pipeline
from tunnelbridge.sender import Sender, SendOptions
from tunnelbridge.tunnel import Tunnel

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"give interfaces \(-i\) or a capture file \(-r\), one of them"),
        ({"to": ["gre://x"]}, "give interfaces"),
        ({"interfaces": ["a"], "file": Path("x"), "to": ["gre://x"]}, "one of them"),
        ({"interfaces": ["a"]}, "give at least one target: --to TUNNEL"),
        ({"interfaces": ["a", "b", "a"], "to": ["gre://x"]}, "an interface is named twice"),
        ({"file": Path("x"), "to": ["gre://x"], "speed": "fast"}, "--speed fast: expected"),
        ({"file": Path("x"), "to": ["gre://x"], "direction": "in"}, "^--direction .*-r"),
        ({"interfaces": ["a"], "to": ["gre://x"], "speed": "max"}, "^--speed .*-i"),
        ({"interfaces": ["a"], "to": ["gre://x"], "speed": "5"}, "^--speed .*-i"),
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
    before = lab.descriptors()

    done, tunnel = send(capsys, file=path, to=[to(far)], speed="max", stats=str(stats))

    assert arrived(far) == frames
    assert done["reason"] == "end of file"
    assert done["balanced"] is True
    assert done["refused"] == {"frame-short": 1}
    assert tunnel["sent"] == 1500
    ledger = json.loads(stats.read_text())
    assert (ledger["received"], ledger["cloned"], ledger["segments"]) == (1501, 1500, 1500)
    assert ledger["tunnels"][0]["octets"] == sum(map(len, frames))
    assert lab.left_open(before) == []


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


# --- what should not happen ---


@contextlib.contextmanager
def traffic() -> Iterator[dict[str, Any]]:
    """Keep loopback busy; yields the options that mirror it."""
    end = threading.Event()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))

        def work() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                while not end.wait(0.001):
                    sock.sendto(b"x", listener.getsockname())

        thread = threading.Thread(target=work)
        thread.start()
        try:
            port = listener.getsockname()[1]
            yield {"interfaces": ["lo"], "expression": f"udp dst port {port}"}
        finally:
            end.set()
            thread.join()


def test_a_bug_in_the_data_path_ends_it_with_a_ledger(
    far: socket.socket,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    root: None,
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Pipeline, "process", fail)
    before = lab.descriptors()
    with traffic() as options, pytest.raises(ZeroDivisionError):
        send(capsys, to=[to(far)], duration=5, **options)

    done = [json.loads(line) for line in capsys.readouterr().err.splitlines()][-2]
    assert (done["event"], done["reason"]) == ("done", "error")
    assert len(lab.left_open(before)) <= 3  # what libuv keeps from its first loop on


@pytest.mark.parametrize("error", [ZeroDivisionError, OSError, UserError])
def test_the_once_a_second_look(
    far: socket.socket,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
) -> None:
    """A bug in it ends the program; a route that is gone just now does not."""
    looked = []

    def fail(_: object) -> None:
        looked.append(1)
        raise error("so it is")

    monkeypatch.setattr(sender, "TICK", 0.01)
    monkeypatch.setattr(Tunnel, "refresh", fail)
    packets = [(number * 3600 * SECOND, numbered(number)) for number in range(3)]
    path = pcap_files.write(tmp_path / "x.pcap", packets)
    is_bug = error is ZeroDivisionError

    with pytest.raises(error) if is_bug else contextlib.nullcontext():
        lines = send(capsys, file=path, to=[to(far)], duration=5 if is_bug else 0.3)
    if is_bug:
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    assert lines[0]["reason"] == ("error" if is_bug else "duration")
    assert lines[0]["cloned"] == 1
    assert len(looked) == 1 if is_bug else len(looked) > 1


def block(kind: int, body: bytes) -> bytes:
    """Return a pcapng block."""
    length = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + length + body + length


def test_a_mistake_in_the_middle_keeps_the_ledger(
    far: socket.socket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, stats = tmp_path / "x.pcapng", tmp_path / "stats.json"
    octets = numbered(1) + bytes(-len(numbered(1)) % 4)
    packets = [
        block(6, struct.pack("<IIIII", number, 0, 0, *[len(numbered(1))] * 2) + octets)
        for number in (0, 1)
    ]
    path.write_bytes(
        block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))
        + b"".join(block(1, struct.pack("<HHI", linktype, 0, 65535)) for linktype in (1, 105))
        + b"".join(packets)
    )

    with pytest.raises(UserError, match="link type 105"):
        send(capsys, file=path, to=[to(far)], speed="max", stats=str(stats))

    done = json.loads(capsys.readouterr().err.splitlines()[0])
    assert (done["reason"], done["received"], done["cloned"]) == ("error", 1, 1)
    assert json.loads(stats.read_text())["cloned"] == 1
    assert arrived(far) == [numbered(1)]


class Congested(recording.RecordingSocket):
    """A socket whose queue is full for good: each batch waits as long as a real one would."""

    marked = True

    def send(self, _: np.ndarray, batch: Batch) -> Sent:
        time.sleep(0.1)
        return Sent(errors={"queue-full": len(batch)})


def test_congested_tunnels_do_not_keep_it_from_ending(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, root: None
) -> None:
    monkeypatch.setattr(targets, "open_socket", lambda *_: Congested())
    names = [f"vxlan://127.0.0.{number}" for number in range(1, 9)]
    console.configure_logging(verbose=False)
    ended = []

    async def steer(running: Sender) -> None:
        task = asyncio.create_task(running.run())
        while not running.ledger.cloned:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        ended.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
        await task

    with traffic() as options:
        running = Sender(SendOptions(to=names, **options))
        uvloop.run(asyncio.wait_for(steer(running), 30))

    assert time.monotonic() - ended[0] < 2
    assert all(tunnel._is_hurried for tunnel in running.policy.tunnels)
    assert running.ledger.balances()
    running.report()
    assert '"reason": "SIGINT"' in capsys.readouterr().err


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
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    root: None,
) -> None:
    path = pcap_files.write(tmp_path / "x.pcap", [numbered(1)])
    before = lab.descriptors()

    with pytest.raises(UserError, match=message) as told:
        sender.send(SendOptions(**{"file": path, "to": ["gre://127.0.0.1"]} | options))

    assert capsys.readouterr().err == ""  # a ledger of nothing tells nothing
    assert "\n" not in str(told.value)
    assert lab.left_open(before) == []
