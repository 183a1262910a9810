"""Clone bulk TCP from the mirrored interface, offloads on: how much goes without loss.

iperf3 runs at rising rates; super-packets are segmented and checksums finished on the way. The
judge is the router: as many packets as the ledger has segments, and no packet dropped before.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

import networks
from loads import Site, cpu_time
from networks import HOST, MIRRORED
from process import wait_until
from sending import TUNNELS

PORT: Final = "5201"
DRAIN: Final = 0.3
HEAD: Final = (
    "| bulk TCP into | asked Gbit/s | TCP Gbit/s | cloned Gbit/s | packets lost | segments lost"
    " | CPU s per s | ledger |"
)


def ours(site: Site, form: str, gigabits: float | None) -> dict[str, Any]:
    """Clone one TCP connection at ``gigabits`` per second (None: as fast as it goes)."""
    net, stats = site.net, site.lab.folder / "send.json"
    argv = [sys.executable, "-m", "tunnelbridge.cli", "send", "-i", MIRRORED, "--to", TUNNELS[form]]
    core = networks.cores()[0]
    listen = ["iperf3", "-s", "-1", "-p", PORT, "--forceflush"]
    server = site.start("iperf3-server", listen, net.host, core=core, ready="listening")
    program = site.start("send", [*argv, "--stats", str(stats)], net.host, ready="cloning")
    before, cpu = net.cloned(), cpu_time(program.pid)
    client = ["iperf3", "-c", HOST, "-p", PORT, "-J", "-t", f"{site.seconds:g}"]
    client += ["-b", f"{gigabits:g}G"] if gigabits else []
    running = site.start("iperf3", client, net.generator, core=core)
    running.wait(site.seconds + 20)
    server.wait(10)
    wait_until(lambda: _is_still(site), 20, "the last clone")
    cpu, cloned = cpu_time(program.pid) - cpu, net.cloned() - before
    program.stop()
    return _record(
        form, gigabits, json.loads(running.out.read_text()), stats_of(stats), cloned, cpu
    )


def _is_still(site: Site) -> bool:
    seen = site.net.cloned()
    time.sleep(DRAIN)
    return site.net.cloned() == seen


def stats_of(path: Any) -> dict[str, Any]:
    """Return a ledger that ``--stats`` wrote."""
    ledger: dict[str, Any] = json.loads(path.read_text())
    return ledger


def _record(
    form: str,
    gigabits: float | None,
    iperf: dict[str, Any],
    ledger: dict[str, Any],
    cloned: int,
    cpu: float,
) -> dict[str, Any]:
    tunnel, sent = ledger["tunnels"][0], iperf["end"]["sum_sent"]
    seconds = sent["seconds"]
    return {
        "format": form,
        "asked_gbps": gigabits,
        "tcp_gbps": sent["bits_per_second"] / 1e9,
        "cloned_gbps": tunnel["octets"] * 8 / seconds / 1e9,
        "packets": ledger["received"],
        "segments": ledger["segments"],
        "lost_packets": ledger["kernel_dropped"],
        "lost_clones": ledger["segments"] - cloned,
        "cpu_seconds_per_second": cpu / seconds,
        "balanced": ledger["balanced"] and cloned == tunnel["sent"],
        "counts": ledger,
    }


def markdown(records: list[dict[str, Any]]) -> str:
    """Return the table."""
    lines = [
        HEAD,
        "|-|-|-|-|-|-|-|-|",
    ]
    for each in records:
        asked = "all" if each["asked_gbps"] is None else f"{each['asked_gbps']:g}"
        lost = each["lost_packets"] / max(each["packets"], 1)
        lines.append(
            f"| {each['format']} | {asked} | {each['tcp_gbps']:.2f} | {each['cloned_gbps']:.2f}"
            f" | {lost:.2%} | {each['lost_clones']} | {each['cpu_seconds_per_second']:.2f}"
            f" | {'agrees' if each['balanced'] else 'DIFFERS'} |"
        )
    return "\n".join(lines)
