"""The programs that read live: tshark over TCP, from standard input and as an extcap; Suricata.

One namespace is enough: mirrored frames come in VXLAN over loopback.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import live
import outer
import pytest
from live import Lab, Process, compare, inside, wait_until

from collector import extcap_folder

pytestmark = pytest.mark.usefixtures("root")

PORT = 4789
VXLAN = bytes.fromhex("0800000000000700")
COUNT = 500
_ports = itertools.count(57012)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    live.need("ip", "tshark")
    with Lab() as opened:
        yield opened


@pytest.fixture(scope="module")
def ns(lab: Lab) -> str:
    name = lab.namespace("one")
    lab.command("ip", "-n", name, "link", "set", "lo", "up")
    return name


@pytest.fixture(autouse=True)
def _nothing_is_left(lab: Lab) -> Iterator[None]:
    with live.ended(lab):
        yield


@pytest.fixture
def port() -> int:
    return next(_ports)


def frames(count: int, first: int = 0, size: int = 200) -> list[bytes]:
    """Frames that are all different, every other one to port 53."""
    return [
        outer.frame(
            outer.ipv4(
                outer.udp(
                    number.to_bytes(8) + bytes(size), 1024 + number % 60_000, 53 + number % 2
                ),
                17,
                "10.0.0.1",
                "10.0.0.2",
            )
        )
        for number in range(first, first + count)
    ]


def mirror(namespace: str, octets: Sequence[bytes], pause: float = 0.0) -> None:
    """Send frames in VXLAN; ``pause`` seconds after every hundredth."""

    def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number, frame in enumerate(octets):
                sock.sendto(VXLAN + frame, ("127.0.0.1", PORT))
                if pause and number % 100 == 99:
                    time.sleep(pause)  # the rate, not a condition that is waited for

    inside(namespace, work)


def connected(program: live.Program, count: int) -> None:
    """Wait until ``count`` readers are there."""

    def enough() -> bool:
        return sum(entry["event"] == "reader connected" for entry in program.log) >= count

    wait_until(enough, 20, f"{count} readers")


def tshark(lab: Lab, namespace: str, name: str, port: int, count: int) -> tuple[Process, Path]:
    """Start tshark on a live server; it ends by itself after ``count`` packets."""
    path = lab.folder / f"{name}.pcap"
    command = ["tshark", "-Q", "-n", "-i", f"TCP@127.0.0.1:{port}", "-F", "pcap", "-w", str(path)]
    return lab.start(name, [*command, "-c", str(count)], namespace), path


def as_pcap(path: Path) -> Path:
    """Return a capture as a classic pcap: what tshark gets as pcapng, it writes as that."""
    result = path.with_suffix(".classic")
    subprocess.run(
        ["tshark", "-r", path, "-F", "pcap", "-w", result], check=True, stderr=subprocess.DEVNULL
    )
    return result


def test_tshark_reads_two_servers_of_two_formats(lab: Lab, ns: str, port: int) -> None:
    second = next(_ports)
    program = live.listen(
        lab, ns, "--vxlan", str(PORT), "--serve", f":{port}",
        "--serve", f":{second}?format=pcapng", "--serve-filter", "udp dst port 53",
    )  # fmt: skip
    expected = [each for each in frames(COUNT) if each[36:38] == (53).to_bytes(2)]
    readers = [tshark(lab, ns, f"two-{number}", number, len(expected)) for number in (port, second)]
    connected(program, 2)
    mirror(ns, frames(COUNT), pause=0.01)
    for process, path in readers:
        assert process.wait(20) == 0, process.last_words()
        assert compare.read(as_pcap(path)) == live.as_frames(expected)
    sinks = program.end()["sinks"]
    for sink in sinks:
        assert (sink["delivered"], sink["filtered"]) == (len(expected), COUNT - len(expected))
        assert [reader["sent"] for reader in sink["readers"]] == [len(expected)]


def test_a_stalled_reader_costs_neither_tshark_nor_a_file_one_packet(
    lab: Lab, ns: str, port: int
) -> None:
    path = lab.folder / "beside.pcap"
    program = live.listen(
        lab, ns, "--vxlan", str(PORT), "--pcap", str(path), "--tap", "stall0",
        "--serve", f"127.0.0.1:{port}?queue=100kB",
    )  # fmt: skip
    count = 20_000
    sent = frames(count, size=1200)
    process, copy = tshark(lab, ns, "beside-a-sleeper", port, count)
    connected(program, 1)
    sleeper = inside(ns, _sleeper, port)
    connected(program, 2)
    mirror(ns, sent, pause=0.01)
    assert process.wait(30) == 0, process.last_words()
    ledger = program.end()
    sleeper.close()

    assert ledger["balanced"], ledger
    assert (ledger["received"], ledger["socket_dropped"]) == (count, 0)
    tap, pcap, serve = ledger["sinks"]
    assert compare.read(copy) == live.as_frames(sent)
    assert compare.read(path) == live.as_frames(sent)
    assert (tap["delivered"], pcap["delivered"]) == (count, count)
    told = {reader["dropped"].get("reader-slow", 0) for reader in serve["readers"]}
    assert told == {0, max(told)}
    assert serve["dropped"]["reader-slow"] == max(told) > count / 2


def _sleeper(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    return sock


def through_a_pipe(lab: Lab, namespace: str, name: str, reader: Sequence[str]) -> Process:
    """Start ``collector listen --pcap - | reader``; return when the collector listens."""
    listen = shlex.join([*live.LISTEN, "--vxlan", str(PORT), "--pcap", "-"])
    line = f"{listen} | {shlex.join(reader)}"
    return lab.start(name, ["sh", "-c", line], namespace, ready='"listening"')


def test_tshark_reads_standard_input(lab: Lab, ns: str) -> None:
    path = lab.folder / "stdin.pcap"
    reader = ["tshark", "-Q", "-n", "-i", "-", "-F", "pcap", "-w", str(path), "-c", str(COUNT)]
    process = through_a_pipe(lab, ns, "stdin-tshark", reader)
    mirror(ns, frames(COUNT))
    assert process.wait(20) == 0, process.last_words()  # the collector ends with its reader
    assert compare.read(path) == live.as_frames(frames(COUNT))


def test_what_comes_is_in_the_pipe_within_a_tenth_of_a_second(ns: str) -> None:
    """A lone packet as well; the best of some, as the machine may be busy."""
    command = ["ip", "netns", "exec", ns, *live.LISTEN, "--vxlan", str(PORT), "--pcap", "-"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    out = process.stdout.fileno()
    latencies = []
    try:
        while b'"listening"' not in process.stderr.readline():
            assert process.poll() is None
        assert len(os.read(out, 1 << 16)) == 24
        for frame in frames(5):
            began = time.monotonic()
            mirror(ns, [frame])
            octets = os.read(out, 1 << 16)
            latencies.append(time.monotonic() - began)
            assert octets[16:] == frame
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=10)
    assert process.returncode == 0
    assert min(latencies) < 0.1, latencies


SURICATA = """\
%YAML 1.1
---
default-log-dir: {folder}
stats: {{enabled: yes, interval: 1}}
outputs:
  - eve-log:
      {{enabled: yes, filetype: regular, filename: eve.json, types: [{{stats: {{totals: yes}}}}]}}
logging: {{default-log-level: notice, outputs: [{{console: {{enabled: yes}}}}]}}
pcap-file: {{checksum-checks: yes}}
unix-command: {{enabled: no}}
"""


@pytest.mark.parametrize("way", ["stdin", "nc"])
def test_suricata_reads_standard_input(lab: Lab, ns: str, way: str, port: int) -> None:
    live.need("suricata", "nc")
    folder = lab.folder / f"suricata-{way}"
    folder.mkdir()
    (folder / "suricata.yaml").write_text(SURICATA.format(folder=folder))
    (folder / "no.rules").write_text("")
    suricata = ["suricata", "-c", str(folder / "suricata.yaml"), "-S", str(folder / "no.rules"),
                "-l", str(folder), "--runmode", "single", "-r", "/dev/stdin"]  # fmt: skip
    sent = frames(COUNT)
    if way == "stdin":
        process = through_a_pipe(lab, ns, "stdin-suricata", suricata)
        mirror(ns, sent)
        (collector,) = [pid for pid in pids(lab, ns) if arguments(pid)[2] == b"collector.cli"]
        os.kill(collector, signal.SIGTERM)
    else:
        program = live.listen(lab, ns, "--vxlan", str(PORT), "--serve", f":{port}")
        line = f"nc 127.0.0.1 {port} | {shlex.join(suricata)}"
        process = lab.start("nc-suricata", ["sh", "-c", line], ns)
        connected(program, 1)
        mirror(ns, sent)
        ledger = program.end()
        assert ledger["sinks"][0]["delivered"] == COUNT
    assert process.wait(30) == 0, process.last_words()
    lines = (folder / "eve.json").read_text().splitlines()
    decoder = json.loads(lines[-1])["stats"]["decoder"]
    assert (decoder["pkts"], decoder["udp"], decoder["invalid"]) == (COUNT, COUNT, 0)


def pids(lab: Lab, namespace: str) -> list[int]:
    """Return the processes in a namespace."""
    return [int(pid) for pid in lab.command("ip", "netns", "pids", namespace).split()]


def arguments(pid: int) -> list[bytes]:
    """Return a process's command line, at least three words of it."""
    return [*Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"), b"", b"", b""]


def test_tshark_captures_through_the_extcap(
    lab: Lab, ns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = lab.folder / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    extcap_folder.install(extcap_folder.personal_folder())
    sent = frames(COUNT)
    expected = [each for each in sent if each[36:38] == (53).to_bytes(2)]
    path = lab.folder / "extcap.pcap"
    process = lab.start(
        "extcap-tshark",
        [
            "tshark", "-n", "-o", f"extcap.tunnelbridge.udp:vxlan:{PORT}",
            "-o", "extcap.tunnelbridge.bind:127.0.0.1", "-o", "extcap.tunnelbridge.filter:udp",
            "-i", "tunnelbridge", "-f", "dst port 53", "-F", "pcap", "-w", str(path),
            "-c", str(len(expected)),
        ],
        ns,
    )  # fmt: skip
    wait_until(lambda: listens(ns), 20, "the extcap's listener")
    mirror(ns, sent)
    assert process.wait(20) == 0, process.last_words()
    assert compare.read(path) == live.as_frames(expected)
    assert "Error by extcap" not in process.err.read_text()
    assert "{" not in process.err.read_text()  # no log line of ours
    wait_until(lambda: not pids(lab, ns), 10, "the end of the extcap")


def listens(namespace: str) -> bool:
    """Tell whether somebody has the VXLAN port."""

    def work() -> bool:
        table = Path("/proc/thread-self/net/udp").read_text()
        return f":{PORT:04X} " in table

    return inside(namespace, work)


@pytest.mark.parametrize("way", ["SIGTERM", "EPIPE"])
def test_the_extcap_leaves(lab: Lab, ns: str, tmp_path: Path, way: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    command = [sys.executable, "-m", "collector.extcap", "--capture", "--fifo", str(fifo),
               "--extcap-interface", "tunnelbridge", "--udp", f"vxlan:{PORT}"]  # fmt: skip
    process = lab.start(f"extcap-{way}", command, ns)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        wait_until(lambda: select.select([reader], [], [], 0.1)[0], 20, "a writer")
        assert len(next_octets(reader)) == 24
        wait_until(lambda: listens(ns), 20, "the extcap's listener")
        mirror(ns, frames(1))
        assert next_octets(reader)[16:] == frames(1)[0]
        if way == "SIGTERM":
            assert process.stop(signal.SIGTERM) == 0
            assert next_octets(reader) == b""
    finally:
        os.close(reader)
    assert process.wait(10) == 0
    assert process.err.read_text() == ""


def next_octets(fd: int) -> bytes:
    """Return what comes next in a FIFO that has a writer; nothing once that has gone."""
    assert select.select([fd], [], [], 20)[0], "nothing came in time"
    return os.read(fd, 1 << 16)
