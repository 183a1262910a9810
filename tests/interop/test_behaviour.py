"""How the programs start, stop, survive and tell: signals, limits, vanishing interfaces, sinks."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import live
import pytest
from live import (
    FAR4,
    LISTEN,
    MIRRORED,
    SEND,
    Lab,
    Net,
    as_frames,
    compare,
    inside,
    truth,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("root")

TO = ("--to", f"gre://{FAR4}?seq=on")


@dataclass(frozen=True)
class Place:
    lab: Lab
    net: Net


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with live.routed() as (lab, net):
        yield Place(lab, net)


def numbered(number: int) -> bytes:
    """Return a frame that is unlike every other."""
    return bytes.fromhex("020000000102020000000101") + b"\x90\x00" + number.to_bytes(46, "big")


@contextlib.contextmanager
def traffic(namespace: str, interface: str, every: float = 0.001) -> Iterator[list[float]]:
    """Send numbered frames for as long as the block lasts; yields when each was sent."""
    sent: list[float] = []
    end = threading.Event()

    def work() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            sock.bind((interface, 0))
            while not end.wait(every):
                sock.send(numbered(len(sent)))
                sent.append(time.monotonic())

    thread = threading.Thread(target=inside, args=(namespace, work), daemon=True)
    thread.start()
    try:
        yield sent
    finally:
        end.set()
        thread.join()


# --- ending ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_both_in_two_seconds_under_load(place: Place, number: signal.Signals) -> None:
    lab, net = place.lab, place.net
    pcap = lab.folder / f"{number.name}.pcap"
    collector = live.listen(lab, net.far, "--gre", "--pcap", str(pcap))
    sender = live.send(lab, net.host, "-i", MIRRORED, *TO)

    with traffic(net.source, "eth0", every=0.0001) as sent:
        wait_until(lambda: len(compare.read(pcap)) > 200, 5, "traffic at the far end")
        began = time.monotonic()
        sending = sender.end(number)
        assert time.monotonic() - began < 2
        wait_until(lambda: len(compare.read(pcap)) == sending["cloned"], 5, "the last clone")
        began = time.monotonic()
        receiving = collector.end(number)
        assert time.monotonic() - began < 2

    live.assert_nothing_lost(sending, receiving)
    assert sending["cloned"] == receiving["decapsulated"] == len(compare.read(pcap)) <= len(sent)
    for program, ledger in ((sender, sending), (collector, receiving)):
        (done,) = [line for line in program.log if line["event"] == "done"]
        assert done["reason"] == number.name
        assert done["balanced"] is True
        assert done["received"] == ledger["received"]
    assert len(sender.log) < 10  # nothing is logged per packet


def test_count_ends_both(place: Place) -> None:
    lab, net = place.lab, place.net
    pcap = lab.folder / "count.pcap"
    collector = live.listen(lab, net.far, "--gre", "--pcap", str(pcap), "--count", "150")
    sender = live.send(lab, net.host, "-i", MIRRORED, "--count", "200", *TO)

    with traffic(net.source, "eth0"):
        sending, receiving = sender.wait(10), collector.wait(10)

    assert sending["cloned"] == sending["tunnels"][0]["sent"] == 200
    assert receiving["decapsulated"] == len(compare.read(pcap)) == 150
    assert sending["balanced"]
    assert receiving["balanced"]


def test_duration_ends_both(place: Place) -> None:
    lab, net = place.lab, place.net
    began = time.monotonic()
    collector = live.listen(lab, net.far, "--gre", "--duration", "0.5")
    sender = live.send(lab, net.host, "-i", MIRRORED, "--duration", "0.5", *TO)
    sender.wait(5)
    collector.wait(5)

    assert 0.5 < time.monotonic() - began < 6
    for program in (sender, collector):
        assert program.log[-1]["event"] != "done" or program.log[-1]["reason"] == "duration"
        assert any(line.get("reason") == "duration" for line in program.log)


def test_stats_on_request(place: Place) -> None:
    lab, net = place.lab, place.net
    collector = live.listen(lab, net.far, "--gre")
    sender = live.send(lab, net.host, "-i", MIRRORED, *TO)
    live.inject(net.source, "eth0", live.corpus())
    count = len(live.corpus())

    wait_until(lambda: collector.ask()["decapsulated"] == count, 5, "all clones to be counted")
    asked = sender.ask()
    assert asked["cloned"] == count
    assert asked["balanced"]
    live.assert_nothing_lost(sender.end(), collector.end())


def test_stats_on_standard_output(place: Place) -> None:
    capture = live.write_pcap(place.lab.folder / "stats.pcap", live.corpus())
    done = place.lab.command(
        *SEND, "-r", str(capture), *TO, "--stats", "-", namespace=place.net.host
    )
    assert json.loads(done)["cloned"] == len(live.corpus())


# --- interfaces that come and go ---


def test_an_interface_that_returns_is_picked_up_within_a_second(place: Place) -> None:
    lab, net = place.lab, place.net
    pcap = lab.folder / "flap.pcap"
    collector = live.listen(lab, net.far, "--gre", "--pcap", str(pcap))
    lab.veth((net.source, "flap"), (net.host, "flap0"))
    sender = live.send(lab, net.host, "-i", "flap0", *TO)
    live.inject(net.source, "flap", [numbered(1)])
    wait_until(lambda: as_frames([numbered(1)])[0] in compare.read(pcap), 5, "the first clone")

    for attempt in (2, 3):
        lab.command("ip", "-n", net.host, "link", "delete", "flap0")
        wait_until(
            lambda n=attempt: sum("gone" in line["event"] for line in sender.log) == n - 1,
            2,
            "a word",
        )
        lab.veth((net.source, "flap"), (net.host, "flap0"))
        began = time.monotonic()

        def cloned(mark: bytes = numbered(attempt)) -> bool:
            live.inject(net.source, "flap", [mark])
            return as_frames([mark])[0] in compare.read(pcap)

        wait_until(cloned, 1, "a clone from the new interface")
        assert time.monotonic() - began < 1
        wait_until(
            lambda n=attempt: sum("back" in line["event"] for line in sender.log) == n - 1,
            2,
            "a word",
        )

    ledger = sender.end()
    lab.command("ip", "-n", net.host, "link", "delete", "flap0")
    assert ledger["balanced"]
    received = collector.end()
    assert received["decapsulated"] == ledger["cloned"]


def test_an_interface_that_was_down(place: Place) -> None:
    lab, net = place.lab, place.net
    pcap = lab.folder / "down.pcap"
    collector = live.listen(lab, net.far, "--gre", "--pcap", str(pcap))
    sender = live.send(lab, net.host, "-i", MIRRORED, *TO)
    for number in (1, 2, 3):
        live.inject(net.source, "eth0", [numbered(number)])
        wait_until(lambda n=number: len(compare.read(pcap)) == n, 2, "a clone")
        lab.command("ip", "-n", net.host, "link", "set", MIRRORED, "down")
        wait_until(
            lambda n=number: sum("down" in line["event"] for line in sender.log) == n, 2, "a word"
        )
        lab.command("ip", "-n", net.host, "link", "set", MIRRORED, "up")
        wait_until(lambda: lab.is_up(net.host, MIRRORED), 2, "the interface")

    live.assert_same(as_frames([numbered(1), numbered(2), numbered(3)]), compare.read(pcap))
    live.assert_nothing_lost(sender.end(), collector.end())


# --- sinks ---


def test_a_killed_collector_leaves_all_up_to_the_last_second(place: Place) -> None:
    live.need("tshark")
    lab, net = place.lab, place.net
    pcap = lab.folder / "killed.pcap"
    collector = live.listen(lab, net.far, "--gre", "--pcap", str(pcap))
    sender = live.send(lab, net.host, "-i", MIRRORED, *TO)

    with traffic(net.source, "eth0") as sent:
        wait_until(lambda: sent and time.monotonic() - sent[0] > 1.5, 5, "a second and a half")
        collector.process.popen.kill()
        killed = time.monotonic()
        collector.process.popen.wait()
    sender.end()

    got = compare.read(pcap)
    owed = [numbered(number) for number, at in enumerate(sent) if at < killed - 1]
    assert len(owed) > 50
    assert not set(owed) - {frame.octets for frame in got}
    done = subprocess.run(["tshark", "-n", "-r", pcap], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(got)


def test_a_stream_into_tshark(place: Place) -> None:
    live.need("tshark")
    lab, net = place.lab, place.net
    with (
        (lab.folder / "piped.err").open("wb") as errors,
        subprocess.Popen(
            ["ip", "netns", "exec", net.far, *LISTEN, "--gre", "--pcap", "-", "--count", "20"],
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as collector,
        subprocess.Popen(
            ["tshark", "-n", "-l", "-r", "-", "-Tfields", "-eframe.len"],
            stdin=collector.stdout,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as tshark,
    ):
        assert tshark.stdout
        assert collector.stdout
        collector.stdout.close()
        wait_until(lambda: b"listening" in (lab.folder / "piped.err").read_bytes(), 10, "listening")
        live.send(
            lab, net.host, "-r", str(live.write_pcap(lab.folder / "p.pcap", live.corpus()[:20])),
            "--speed", "max", *TO,
        ).wait()  # fmt: skip
        lengths = [int(line) for line in tshark.stdout.read().split()]
        assert collector.wait(5) == 0
    assert lengths == [len(frame) for frame in live.corpus()[:20]]


def test_the_reader_of_the_stream_leaves(place: Place) -> None:
    lab, net = place.lab, place.net
    with (
        (lab.folder / "left.err").open("wb") as errors,
        subprocess.Popen(
            ["ip", "netns", "exec", net.far, *LISTEN, "--gre", "--pcap", "-"],
            stdout=subprocess.PIPE,
            stderr=errors,
        ) as collector,
    ):
        wait_until(lambda: b"listening" in (lab.folder / "left.err").read_bytes(), 10, "listening")
        assert collector.stdout
        collector.stdout.close()
        live.send(
            lab, net.host, "-r", str(live.write_pcap(lab.folder / "l.pcap", live.corpus())), *TO
        ).wait()
        assert collector.wait(5) in (0, 1)
    last = (lab.folder / "left.err").read_text()
    assert "Traceback" not in last
    assert "nobody reads" in last


def test_a_tap_in_another_namespace_is_silent_and_sees_all(place: Place) -> None:
    lab, net = place.lab, place.net
    analyser = lab.namespace("ids")
    collector = live.listen(lab, net.far, "--gre", "--tap", f"{analyser}:mon0", "--tap", "mon1")
    recorder, path = truth.capture(lab, "mon0", analyser, "mon0")
    here, beside = truth.capture(lab, "mon1", net.far, "mon1")

    live.send(
        lab, net.host, "-r", str(live.write_pcap(lab.folder / "t.pcap", live.corpus())), *TO
    ).wait()
    for taken in (path, beside):
        live.assert_same(as_frames(live.corpus()), live.collected(taken, len(live.corpus())))
    for namespace, tap in ((analyser, "mon0"), (net.far, "mon1")):
        shown = lab.command("ip", "-n", namespace, "-o", "address", "show", "dev", tap)
        assert "inet" not in shown
        link = json.loads(lab.command("ip", "-n", namespace, "-j", "link", "show", "dev", tap))[0]
        assert {"UP", "NOARP"} <= set(link["flags"])
        assert "MULTICAST" not in link["flags"]
        assert link["mtu"] >= 9000
    ledger = collector.end()
    recorder.stop()
    here.stop()

    assert ledger["balanced"]
    for namespace, tap in ((analyser, "mon0"), (net.far, "mon1")):
        assert tap not in lab.command("ip", "-n", namespace, "-o", "link")


def test_a_tap_that_is_taken(place: Place) -> None:
    lab, net = place.lab, place.net
    first = live.listen(lab, net.far, "--gre", "--tap", "mon2")
    second = subprocess.run(
        ["ip", "netns", "exec", net.far, *LISTEN, "--udp", "tzsp:1", "--tap", "mon2"],
        capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip
    first.end()
    assert second.returncode == 1
    (line,) = second.stderr.splitlines()
    assert "mon2" in line
    assert "in use" in line or "busy" in line
