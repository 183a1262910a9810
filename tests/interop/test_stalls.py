"""At 50,000 packets a second, who stalls loses its own packets and costs nobody else one.

What can stall: a live reader that reads no more; a disk on which writing hangs (a frozen file
system), that is full, or a pipe nobody empties. A tap has no far end that could hold it: an analyser
that stopped reading loses packets at its own socket, where the kernel counts them, and a tap that is
down refuses them at once. An interface that frames are injected into can be full.

What this machine had no time to take out of the socket is in the ledger as ``socket_dropped``; the
sinks are held to what was taken out. Judges: capinfos, and the kernel's counters of interfaces.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import live
import pytest
from live import Lab, Process, inside, wait_until

pytestmark = pytest.mark.usefixtures("root")

GENERATOR = Path(__file__).resolve().parents[2] / "benchmarks" / "generator.py"
RATE, COUNT, SIZE = 50_000, 100_000, 200
SOURCE, COLLECTOR, MAC = "198.51.100.1", "198.51.100.7", "02:00:00:00:03:02"
PORT = 57012
SOL_PACKET, PACKET_STATISTICS = 263, 6


@dataclass(frozen=True)
class Place:
    lab: Lab
    source: str
    far: str
    ids: str
    """Where the taps are."""


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    live.need("ip", "nc", "capinfos")
    with Lab() as lab:
        made = Place(lab, *(lab.namespace(role, silent=True) for role in ("source", "far", "ids")))
        lab.veth((made.source, "eth0"), (made.far, "eth0"), None, MAC)
        lab.address(made.source, "eth0", f"{SOURCE}/24")
        lab.address(made.far, "eth0", f"{COLLECTOR}/24")
        yield made


@pytest.fixture(autouse=True)
def _nothing_is_left(place: Place) -> Iterator[None]:
    with live.ended(place.lab):
        yield


class Collection:
    """A collector with a file, a live reader and a tap that all work, and what a test adds."""

    def __init__(self, place: Place, name: str, *options: str, tap: bool = True) -> None:
        self.place, self.lab = place, place.lab
        self.file, self.copy = self.lab.folder / f"{name}.pcap", self.lab.folder / f"{name}.copy"
        taps = ("--tap", f"{place.ids}:good0") if tap else ()
        self.program = live.listen(
            self.lab, place.far, "--vxlan", "4789", "--pcap", str(self.file), *taps,
            "--serve", str(PORT), *options,
        )  # fmt: skip
        self.reader: Process = self.lab.start(
            f"reader-{name}",
            ["sh", "-c", f"exec nc -d 127.0.0.1 {PORT} > {self.copy}"],
            place.far,
        )
        self.has_tap = tap
        self.until_connected(1)

    def until_connected(self, readers: int) -> None:
        def enough() -> bool:
            return (
                sum(entry["event"] == "reader connected" for entry in self.program.log) == readers
            )

        wait_until(enough, 10, f"{readers} readers")

    def mirror(self) -> None:
        """Send all frames at the rate; return once nothing more comes in."""
        generator = self.lab.start(
            f"generator-{self.file.stem}",
            [
                sys.executable, str(GENERATOR), "-i", "eth0", "--to", MAC, "--size", str(SIZE),
                "--flows", "500", "--encapsulation", "vxlan", "--rate", str(RATE),
                "--count", str(COUNT), "--source", SOURCE, "--destination", COLLECTOR,
            ],
            self.place.source,
        )  # fmt: skip
        assert generator.wait(20) == 0, generator.last_words()
        report = json.loads(generator.out.read_text())
        assert report["sent"] == COUNT
        taken = -1
        while taken != (ledger := self.program.ask())["received"] + ledger["socket_dropped"]:
            taken = ledger["received"] + ledger["socket_dropped"]
        print(f"{COUNT / report['seconds']:.0f}/s, {ledger['socket_dropped']} socket drops")
        self.on_tap = received(self.place.ids, "good0") if self.has_tap else 0

    def end(self, before_exit: Any = None) -> dict[str, Any]:
        """End it; return its ledger, with which the good sinks' judges agree."""
        self.program.stats.unlink(missing_ok=True)
        self.program.process.popen.send_signal(signal.SIGINT)
        wait_until(lambda: self.program.stats.exists() and self.program.stats.stat().st_size, 8,
                   "the closing ledger")  # fmt: skip
        if before_exit is not None:
            before_exit()
        assert self.program.process.wait(5) == 0
        assert self.reader.wait(5) == 0
        ledger = self.program.ledger()
        count = ledger["decapsulated"]
        assert ledger["balanced"], ledger
        assert ledger["rejected"] == {}
        assert count > COUNT * 0.8, ledger
        for name in (f"pcap {self.file}", *([f"tap {self.place.ids}:good0"] * self.has_tap)):
            good = sink(ledger, name)
            assert (good["delivered"], good["dropped"]) == (count, {}), good
        reader = sink(ledger, f"serve 127.0.0.1:{PORT}")["readers"][0]
        assert (reader["sent"], reader["dropped"]) == (count, {}), reader
        assert packets(self.file) == packets(self.copy) == count
        assert self.on_tap == (count if self.has_tap else 0)
        return ledger


def sink(ledger: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the sink of that name."""
    (found,) = [each for each in ledger["sinks"] if each["name"] == name]
    assert isinstance(found, dict)
    return found


def packets(path: Path) -> int:
    """Return how many packets capinfos finds, all whole."""
    shown = subprocess.run(
        ["capinfos", "-M", "-c", str(path)], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"Number of packets:\s+(\d+)", shown)
    assert found, shown
    return int(found[1])


def received(namespace: str, interface: str) -> int:
    """Return the packets that an interface has received."""
    (shown,) = json.loads(
        subprocess.run(
            ["ip", "-n", namespace, "-j", "-s", "link", "show", "dev", interface],
            capture_output=True, text=True, check=True,
        ).stdout
    )  # fmt: skip
    return int(shown["stats64"]["rx"]["packets"])


def test_a_reader_that_reads_no_more(place: Place) -> None:
    collection = Collection(place, "reader", "--serve", f"{PORT + 1}?queue=1MB")
    with inside(place.far, _sleeper, PORT), inside(place.far, _sleeper, PORT + 1):
        collection.until_connected(3)
        collection.mirror()
        ledger = collection.end()

    for number, queue in ((0, 32_000_000), (1, 1_000_000)):
        slow = sink(ledger, f"serve 127.0.0.1:{PORT + number}")
        told = slow["readers"][-1]
        lost = told["dropped"]
        assert told["sent"] + sum(lost.values()) == ledger["decapsulated"]
        assert set(lost) <= {"reader-slow", "ended"}
        assert told["sent"] < ledger["decapsulated"] / 2  # what socket buffers hold
        assert 0 < lost["ended"] * SIZE <= queue
    assert lost["reader-slow"] > ledger["decapsulated"] / 2


def _sleeper(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    return sock


@pytest.fixture
def frozen(place: Place, tmp_path: Path) -> Iterator[Path]:
    """Return a file system that can be frozen: whoever writes hangs in the kernel."""
    live.need("mkfs.ext4", "fsfreeze", "mount")
    image, folder = tmp_path / "image", tmp_path / "frozen"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    place.lab.command("mkfs.ext4", "-q", "-F", str(image))
    if not _mounted(str(image), str(folder), "-o", "loop"):
        pytest.skip("needs loop devices, and none can be had here")
    yield folder
    place.lab.command("fsfreeze", "-u", str(folder), check=False)
    place.lab.command("umount", "--lazy", str(folder))


def _mounted(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


def test_a_disk_that_hangs(place: Place, frozen: Path) -> None:
    """Of a file and of a folder; not even the collector's end waits for it."""
    one, many = f"{frozen}/one.pcap", f"{frozen}/many/"
    collection = Collection(place, "hangs", "--pcap", one, "--pcap", f"{many}?queue=2MB")
    place.lab.command("fsfreeze", "-f", str(frozen))
    collection.mirror()
    ledger = collection.end(lambda: place.lab.command("fsfreeze", "-u", str(frozen)))

    for name in (one, many):
        stuck = sink(ledger, f"pcap {name}")
        assert stuck["dropped"]["writer-stuck"] > 0, stuck
        assert stuck["delivered"] == 0
        assert sum(stuck["dropped"].values()) == ledger["decapsulated"]
    assert sink(ledger, f"pcap {many}")["dropped"]["queue-full"] > COUNT / 2


def test_a_full_disk_and_a_pipe_that_nobody_empties(place: Place, tmp_path: Path) -> None:
    full, pipe = tmp_path / "full", tmp_path / "pipe"
    full.mkdir()
    os.mkfifo(pipe)
    place.lab.command("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(full))
    try:
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        collection = Collection(
            place, "full", "--pcap", f"{full}/one.pcap", "--pcap", f"{pipe}?queue=2MB"
        )
        collection.mirror()
        ledger = collection.end()
        os.close(reader)
        disk = sink(ledger, f"pcap {full}/one.pcap")
        assert set(disk["dropped"]) == {"disk-full"}
        assert disk["delivered"] == packets(full / "one.pcap") > 0
        assert disk["delivered"] + disk["dropped"]["disk-full"] == ledger["decapsulated"]
        stuck = sink(ledger, f"pcap {pipe}")
        assert stuck["dropped"]["queue-full"] > 0
        assert stuck["delivered"] + sum(stuck["dropped"].values()) == ledger["decapsulated"]
        failures = [entry for entry in collection.program.log if entry["event"] == "cannot write"]
        assert sorted(entry["sink"] for entry in failures) == [disk["name"], stuck["name"]]
    finally:
        place.lab.command("umount", "--lazy", str(full))


def test_taps_without_takers_and_a_full_interface(place: Place) -> None:
    """An analyser that stopped, a tap that is down, an interface slower than the traffic."""
    live.need("tc")
    ids = place.ids
    place.lab.veth((ids, "appl0"), (place.source, "appl1"))
    slow = ("tbf", "rate", "1mbit", "burst", "3000", "limit", "50m")
    place.lab.command("tc", "-n", ids, "qdisc", "add", "dev", "appl0", "root", *slow)
    collection = Collection(
        place, "taps", "--tap", f"{ids}:stop0", "--tap", f"{ids}:down0",
        "--inject", f"{ids}:appl0",
    )  # fmt: skip
    with inside(ids, _stopped_analyser, "stop0") as analyser:
        place.lab.command("ip", "-n", ids, "link", "set", "down0", "down")
        collection.mirror()
        arrived = received(ids, "stop0")
        seen, lost = struct.unpack("II", analyser.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    ledger = collection.end()
    place.lab.command("ip", "-n", ids, "link", "delete", "appl0")

    count = ledger["decapsulated"]
    stopped = sink(ledger, f"tap {ids}:stop0")
    assert (stopped["delivered"], stopped["dropped"]) == (count, {})
    assert arrived == count == seen
    assert lost > count * 0.9
    assert sink(ledger, f"tap {ids}:down0")["dropped"] == {"tap-down": count}
    injected = sink(ledger, f"inject {ids}:appl0")
    assert set(injected["dropped"]) == {"queue-full"}
    assert injected["dropped"]["queue-full"] > count / 2


def _stopped_analyser(interface: str) -> socket.socket:
    """Return a socket that captures and that nobody ever reads."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.bind((interface, 0))
    return sock
