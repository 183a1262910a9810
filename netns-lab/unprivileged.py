"""The demo's job without root: a capture of the lab through VXLAN on loopback into a pcap.

The capture is ``captures/http.pcap``. Nothing but UDP is used, so no capability is needed. The
collected frames must equal the capture's, each flow in its order: without root the sender has a
socket for each of several source ports, and flows may overtake each other.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

import compare
from netlab import Lab
from process import wait_until
from report import Report, end, ledger, losses
from routed import LISTEN, SEND

CAPTURE = Path(__file__).parent / "captures" / "http.pcap"
VNI = 7


def run(lab: Lab) -> int:
    """Send the capture, collect it, compare; return the exit code."""
    began, report = time.monotonic(), Report()
    original = compare.read(CAPTURE)
    collected, port = lab.folder / "collected.pcap", free_port()
    stats = lab.folder / "sender.json", lab.folder / "collector.json"
    tunnel = f"vxlan://127.0.0.1:{port}?vni={VNI}"
    report.heading("Without root: a bundled capture through VXLAN on loopback")
    print(f"   {CAPTURE.name} ── tunnelbridge send ══ {tunnel} ══ collector listen ── pcap")

    listen = [*LISTEN, "--no-gre", "--vxlan", str(port), "--bind", "127.0.0.1"]
    listen += ["--pcap", str(collected), "--stats", str(stats[1])]
    collector = lab.start("collector", listen, ready="listening")
    send = [*SEND, "-r", str(CAPTURE), "--to", tunnel, "--speed", "max", "--stats", str(stats[0])]
    sender = lab.start("tunnelbridge", send)
    if sender.wait(20):
        sender.running()  # says its last words
    sent = ledger(stats[0])
    wait_until(
        lambda: collector.running() and len(compare.read(collected)) >= len(original),
        10, "every frame to be in the collector's pcap",
    )  # fmt: skip
    received = end(collector, stats[1])
    got = compare.read(collected)

    report.heading("Packets, by the ledgers of the two programs")
    report.fact("read from the capture", sent["received"])
    report.fact("cloned", sent["cloned"])
    report.fact("sent through VXLAN", sum(each["sent"] for each in sent["tunnels"]), f"VNI {VNI}")
    report.fact("received by the collector", received["received"])
    report.fact("written to the pcap", sum(each["delivered"] for each in received["sinks"]))

    report.heading("Is it true?")
    for request in ("GET / HTTP/1.1", "POST /upload HTTP/1.1"):
        report.check(compare.holds(got, request.encode()), f"in the pcap: {request}")
    wrong = compare.difference(original, got)
    same = f"{len(got) - len(wrong.extra):,} of {len(original):,}"
    report.check(not wrong, f"every collected frame equals the original: {same}", wrong)
    report.check(not losses(sent, received), "nothing was lost", losses(sent, received))
    report.check(sent["balanced"] and received["balanced"], "both ledgers balance")
    return report.verdict(time.monotonic() - began)


def free_port() -> int:
    """Return a UDP port of loopback that nobody listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
