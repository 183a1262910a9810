"""Collect tunnels into a pcap in memory: ours, the kernel's vxlan with tcpdump, a plain uvloop.

The judge of the rate is the file's growth while it runs, that of the total is capinfos; what was
offered is the receive counter of the collector's interface.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Final

from loads import Load, Site, last_json, under
from netlab import Lab
from networks import ANALYSER, SOURCE
from results import OURS, Result, result

PLAIN: Final = Path(__file__).with_name("plain_collect.py")
FILE_HEADER, RECORD_HEADER = 24, 16
DEVICE: Final = "vx0"
TCPDUMP_BUFFER: Final = 256 << 10
"""KiB of tcpdump's ring."""
TCPDUMP_WAITS: Final = 1.2
"""Seconds: its ring hands over a block that is not full only after one."""


class Pcap:
    """A growing file of frames of one size; removed with the lab."""

    def __init__(self, lab: Lab, size: int) -> None:
        self._lab, self._record = lab, RECORD_HEADER + size
        self.path = Path("/dev/shm", f"{lab.folder.name}.pcap")
        lab.defer(lambda: self.path.unlink(missing_ok=True))

    def __call__(self) -> int:
        """Return how many frames are in the file, by its size."""
        if not self.path.exists():
            return 0
        return max(self.path.stat().st_size - FILE_HEADER, 0) // self._record

    def count(self) -> int:
        """Return how many packets capinfos counts, and remove the file."""
        told = self._lab.command("capinfos", "-T", "-m", "-r", "-M", "-c", str(self.path))
        self.path.unlink()
        return int(told.strip().split(",")[-1])


def ours(site: Site, form: str, load: Load) -> Result:
    """Measure ``collector listen``; its ledger must agree with the interface and the file."""
    net, pcap, stats = site.net, Pcap(site.lab, load.size), site.lab.folder / "listen.json"
    wanted = ["--vxlan", "4789"] if form == "vxlan" else ["--gre"]
    argv = [sys.executable, "-m", "collector.cli", "listen", "--bind", ANALYSER, *wanted]
    argv += ["--pcap", str(pcap.path), "--stats", str(stats)]
    program = site.start("listen", argv, net.collector, ready="listening")
    window = under(site, load, net.arrived, pcap, program)
    ledger, written = json.loads(stats.read_text()), pcap.count()
    balanced = (
        ledger["balanced"]
        and ledger["received"] + ledger["socket_dropped"] == window.total_offered
        and ledger["sinks"][0]["delivered"] == written == window.total_done
    )
    return result("collect", OURS, form, load, window, balanced=balanced, counts=ledger)


def kernel(site: Site, load: Load) -> Result:
    """Measure tcpdump on a kernel vxlan device."""
    net, lab, pcap = site.net, site.lab, Pcap(site.lab, load.size)
    lab.command(
        "ip", "-n", net.collector, "link", "add", DEVICE, "type", "vxlan", "id", "42",
        "remote", SOURCE, "local", ANALYSER, "dev", "eth0", "dstport", "4789", "nolearning",
    )  # fmt: skip
    lab.command("ip", "-n", net.collector, "link", "set", DEVICE, "up")
    argv = ["tcpdump", "-n", "-i", DEVICE, "-B", str(TCPDUMP_BUFFER), "-Z", "root"]
    argv += ["-w", str(pcap.path)]
    try:
        program = site.start("tcpdump", argv, net.collector, ready="listening on")
        window = under(site, load, net.arrived, pcap, program, TCPDUMP_WAITS)
    finally:
        lab.command("ip", "-n", net.collector, "link", "del", DEVICE)
    said, written = program.err.read_text(), pcap.count()
    captured, dropped = (
        int(re.search(rf"(\d+) packets? {what}", said)[1])  # type: ignore[index]
        for what in ("captured", "dropped by kernel")
    )
    balanced = (
        captured == written == window.total_done and captured + dropped == window.total_offered
    )
    counts = {"captured": captured, "dropped": dropped}
    return result(
        "collect", "vxlan + tcpdump", "vxlan", load, window, balanced=balanced, counts=counts
    )


def plain(site: Site, load: Load) -> Result:
    """Measure the receiver that Python users write."""
    net, pcap = site.net, Pcap(site.lab, load.size)
    argv = [sys.executable, str(PLAIN), ANALYSER, str(pcap.path)]
    program = site.start("plain-collect", argv, net.collector, ready="ready")
    window = under(site, load, net.arrived, pcap, program)
    counts, written = last_json(program), pcap.count()
    balanced = (
        counts["received"] + counts["socket_dropped"] == window.total_offered
        and counts["received"] == written == window.total_done
    )
    return result(
        "collect", "uvloop receiver", "vxlan", load, window, balanced=balanced, counts=dict(counts)
    )
