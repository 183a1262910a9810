"""The demo's job as root, on the routed lab of ``topology.py``, in the order in which it happens.

A judge records what is on the wire of the mirrored interface (``truth.py``). Marks (``traffic.py``)
cut the same stretch out of each capture, whichever program started or ended first.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path

import compare
import topology
import traffic
import truth
from netlab import Lab, inside
from process import Process, wait_until
from report import Report, end, losses

MEMBER, MEMBER_MAC = "10.10.10.10", "02:00:0a:0a:0a:0a"
TUNNEL = f"gre://{topology.COLLECTOR}"
FULL_FRAME = 1514
FILE, UPLOAD = 2 << 20, 1 << 20
"""Sizes that make TCP hand super-packets of up to 64 KiB to the interface, both ways."""

PROGRAMS = Path(sys.executable).parent
SEND = [str(PROGRAMS / "tunnelbridge"), "send"]
LISTEN = [str(PROGRAMS / "collector"), "listen"]


class Demo:
    """The whole demo: :meth:`run` is the story."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.report = Report()
        self.began = time.monotonic()

    def run(self) -> int:
        """Build, clone, compare; return the exit code."""
        self.net = topology.build(self.lab)
        self.report.heading("HTTP between client and host is cloned and collected beyond a router")
        print(topology.PICTURE)
        self.host = traffic.Host(self.net.host)
        self.lab.defer(self.host.close)

        self.start()
        first = self.begin()
        self.requests = inside(self.net.client, talk)
        last = self.mark("end")
        wait_until(lambda: self.is_everywhere(last), 10, "the last clone to be in every capture")
        self.finish()

        self.show_counts()
        self.show_frames()
        self.prove(first, last)
        return self.report.verdict(time.monotonic() - self.began)

    # --- the programs and the judges ---

    def start(self) -> None:
        """Start the judge, the collector, a tcpdump on its tap, and the sender."""
        folder, net = self.lab.folder, self.net
        self.collected = folder / "collected.pcap"
        self.stats = folder / "sender.json", folder / "collector.json"
        self.wire, self.on_wire = truth.record(self.lab, net.host, topology.MIRRORED)

        listen = [*LISTEN, "--gre", "--tap", "mon0", "--pcap", str(self.collected)]
        listen += ["--stats", str(self.stats[1])]
        self.collector = self.lab.start("collector", listen, net.collector, ready="listening")
        self.tap, self.on_tap = truth.capture(self.lab, "mon0", net.collector, "mon0")

        # on one processor, as the traffic: from two the frames could overtake each other (traffic.py)
        stay = ["taskset", "--cpu-list", str(max(os.sched_getaffinity(0)))]
        send = [*stay, *SEND, "-i", topology.MIRRORED, "--to", MEMBER]
        send += ["--arp", f"{MEMBER}={MEMBER_MAC}", "--fdb", f"{MEMBER_MAC}={TUNNEL}"]
        send += ["--stats", str(self.stats[0])]
        self.sender = self.lab.start("tunnelbridge", send, net.host)

    def begin(self) -> bytes:
        """Send marks until one comes out at the far end; the last one sent is the beginning."""
        counter = itertools.count(1)

        def mark() -> bytes | None:
            sent = self.mark(f"begin {next(counter)}")
            return sent if self.is_in(self.on_tap, b"tunnelbridge mark: begin") else None

        first = wait_until(mark, 15, "the first clone to reach the collector", every=0.1)
        assert first is not None
        wait_until(lambda: self.is_everywhere(first), 10, "the first clones to be in every capture")
        return first

    def finish(self) -> None:
        """End the sender, see whether anything still comes, and end the rest."""
        self.sent = end(self.sender, self.stats[0])
        self.after = self.mark("after the sender has ended")
        wait_until(
            lambda: compare.holds(compare.read(self.on_wire), self.after), 5, "the mark on the wire"
        )
        self.received = end(self.collector, self.stats[1])
        for judge in (self.tap, self.wire):
            judge.stop()

    def mark(self, text: str) -> bytes:
        """Send a mark from the client to the host."""
        return inside(self.net.client, traffic.mark, topology.HOST, text)

    def is_in(self, path: Path, octets: bytes) -> bool:
        """Tell whether a capture has a frame with ``octets``; LabError if a program has ended."""
        running: tuple[Process, ...] = (self.sender, self.collector, self.tap, self.wire)
        return all(each.running() for each in running) and compare.holds(compare.read(path), octets)

    def is_everywhere(self, octets: bytes) -> bool:
        """Tell whether every capture has a frame with ``octets``."""
        return all(self.is_in(each, octets) for each in (self.on_wire, self.on_tap, self.collected))

    # --- what came of it ---

    def show_counts(self) -> None:
        """Print the ledgers' way of a packet."""
        sent, received, fact = self.sent, self.received, self.report.fact
        self.report.heading("Packets, by the ledgers of the two programs")
        fact("seen by the sender on eth0", sent["received"])
        fact("cloned", sent["cloned"], "the member is known by static ARP and FDB only")
        fact("as frames of the wire", sent["segments"], "super-packets are cut")
        for tunnel in sent["tunnels"]:
            fragmented = f"{tunnel['fragmented']:,} of them in fragments"
            fact("sent", tunnel["sent"], f"{tunnel['name']}, {fragmented}")
        fact("received by the collector", received["received"])
        for sink in received["sinks"]:
            kind, _, name = sink["name"].partition(" ")
            fact(f"written to the {kind}", sink["delivered"], Path(name).name)

    def show_frames(self) -> None:
        """Print the first frames as tcpdump decodes them."""
        self.report.heading("The first TCP frames in the collector's pcap, by tcpdump")
        lines = self.lab.command(
            "tcpdump", "-nn", "-t", "-c", "6", "-r", str(self.collected), "tcp"
        )
        for line in lines.splitlines()[:6]:
            print(f"   {line[:96]}")

    def prove(self, first: bytes, last: bytes) -> None:
        """Compare what was collected with what was on the wire, and check what was promised."""
        check = self.report.check
        captures = [compare.read(path) for path in (self.on_wire, self.collected, self.on_tap)]
        original, pcap, tap = (compare.between(frames, first, last) for frames in captures)
        member = bytes.fromhex(MEMBER_MAC.replace(":", ""))
        expected = compare.readdressed(original, member)
        count = f"{len(original):,}"

        outside = len(captures[1]) - len(pcap)
        self.report.heading("Is it true?")
        print(f"   (compared between two marks that the client sent; {outside} frames lie outside)")
        for request in self.requests:
            check(compare.holds(pcap, request.encode()), f"in the pcap: {request}")
        addressed = all(frame.octets[:6] == member for frame in pcap)
        check(addressed, f"every collected frame is addressed to the member, {MEMBER_MAC}")
        wrong = compare.difference(expected, pcap)
        same = f"{len(pcap) - len(wrong.extra):,} of {count}"
        check(not wrong, f"every collected frame equals the original on the wire: {same}", wrong)
        wrong = compare.difference(expected, tap)
        check(not wrong, f"an IDS on mon0 sees the same {count} frames", wrong)
        largest = max(frame.wire_length for frame in pcap)
        check(largest <= FULL_FRAME, f"the largest frame has {largest:,} octets")
        check(
            not compare.holds(captures[1] + captures[2], self.after), "nothing came after the end"
        )
        lost = losses(self.sent, self.received)
        arrived = sum(each["sent"] for each in self.sent["tunnels"]) == self.received["received"]
        check(arrived and not lost, "nothing was lost on the way", lost or "sent is not received")
        check(self.sent["balanced"] and self.received["balanced"], "both ledgers balance")
        unseen = truth.lost(self.wire) + truth.lost(self.tap)
        check(unseen == 0, "the judges missed nothing", f"{unseen} packets")


def how_to_enter(lab: Lab) -> str:
    """Return how to use a lab that was left standing, and how to remove it."""
    remove = "; ".join(f"ip netns del {name}" for name in lab.namespaces)
    host = f"tb-host-{lab.suffix}"
    return f"""
The lab stands. Enter a namespace, for example the host's:
   ip netns exec {host} bash
The captures and ledgers: {lab.folder}
A web server again:  ip netns exec {host} python3 -m http.server 80
To remove it all:
   {remove}; rm -r {lab.folder}"""


def talk() -> list[str]:
    """Be the client for a while; return the requests made. Every answer is compared."""
    return [
        traffic.get(topology.HOST, 0),
        traffic.get(topology.HOST, FILE),
        traffic.post(topology.HOST, UPLOAD),
        traffic.get(topology.HOST6, FILE // 2),
    ]
