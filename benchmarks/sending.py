"""Clone from a mirrored interface into tunnels: ours, the kernel's tc, a plain uvloop loop.

The judge is the router's receive counter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import networks
from loads import Load, Site, last_json, under
from networks import ANALYSER, HOST_UP, MIRRORED
from results import OURS, Result, result

TUNNELS: Final = {
    "vxlan": f"vxlan://{ANALYSER}?vni=42",
    "gre": f"gre://{ANALYSER}",
    "erspan2": f"erspan2://{ANALYSER}?session=42",
}
PLAIN: Final = Path(__file__).with_name("plain_clone.py")
DEVICE: Final = "vx0"


def ours(site: Site, form: str, load: Load) -> Result:
    """Measure ``tunnelbridge send``; its ledger must agree with both kernel counters."""
    net, stats = site.net, site.lab.folder / "send.json"
    argv = [sys.executable, "-m", "tunnelbridge.cli", "send", "-i", MIRRORED, "--to", TUNNELS[form]]
    program = site.start("send", [*argv, "--stats", str(stats)], net.host, ready="cloning")
    window = under(site, load, net.mirrored, net.cloned, program)
    ledger = json.loads(stats.read_text())
    balanced = (
        ledger["balanced"]
        and ledger["received"] == window.total_offered
        and ledger["tunnels"][0]["sent"] == window.total_done
    )
    return result("send", OURS, form, load, window, balanced=balanced, counts=ledger)


def kernel(site: Site, load: Load) -> Result:
    """Measure tc mirred into a vxlan device, all of it on the core where packets arrive."""
    net, lab = site.net, site.lab
    lab.command(
        "ip", "-n", net.host, "link", "add", DEVICE, "type", "vxlan", "id", "42",
        "remote", ANALYSER, "local", HOST_UP, "dev", "up0", "dstport", "4789", "nolearning",
    )  # fmt: skip
    lab.command("ip", "-n", net.host, "link", "set", DEVICE, "up")
    lab.command("tc", "-n", net.host, "qdisc", "add", "dev", MIRRORED, "clsact")
    lab.command(
        "tc", "-n", net.host, "filter", "add", "dev", MIRRORED, "ingress", "protocol", "all",
        "prio", "1", "u32", "match", "u32", "0", "0",
        "action", "mirred", "egress", "mirror", "dev", DEVICE,
    )  # fmt: skip
    try:
        window = under(site, load, net.mirrored, net.cloned, None)
        shown = lab.command("ip", "-n", net.host, "-s", "-j", "link", "show", "dev", DEVICE)
    finally:
        lab.command("tc", "-n", net.host, "qdisc", "del", "dev", MIRRORED, "clsact")
        lab.command("ip", "-n", net.host, "link", "del", DEVICE)
    sent = json.loads(shown)[0]["stats64"]["tx"]
    return result(
        "send", "tc mirred", "vxlan", load, window,
        balanced=sent["packets"] == window.total_done,
        counts={"sent": sent["packets"], "dropped": sent["dropped"]},
        has_process=False,
    )  # fmt: skip


def plain(site: Site, load: Load) -> Result:
    """Measure the loop that Python users write."""
    net = site.net
    argv = [sys.executable, str(PLAIN), MIRRORED, networks.ANALYSER]
    program = site.start("plain-clone", argv, net.host, ready="ready")
    window = under(site, load, net.mirrored, net.cloned, program)
    counts = last_json(program)
    balanced = (
        counts["received"] + counts["kernel_dropped"] == window.total_offered
        and counts["sent"] == window.total_done
    )
    return result(
        "send", "uvloop loop", "vxlan", load, window, balanced=balanced, counts=dict(counts)
    )
