"""The judge: what was on the wire of an interface, by the kernel's word and not by ours.

``tc`` mirrors both directions of the interface into a second veth pair whose offloads are off, so
the kernel itself segments super-packets and finishes checksums there; ``tcpdump`` writes what leaves.
The interface that is judged keeps its offloads.

What leaves, not what arrives: on the way to the other end two processors could mix up the frames.
"""

from __future__ import annotations

import re
from pathlib import Path

from netlab import Lab
from process import LabError, Process

WIRE = "wire0"
OFF = ("tx", "sg", "tso", "gso", "gro")


def record(lab: Lab, namespace: str, interface: str) -> tuple[Process, Path]:
    """Begin to record; return the tcpdump that does and its file."""
    judge = lab.namespace("judge", silent=True)
    lab.veth((namespace, WIRE), (judge, WIRE))
    lab.setting(namespace, f"net/ipv6/conf/{WIRE}/disable_ipv6", "1")
    for feature in OFF:
        lab.command("ethtool", "-K", WIRE, feature, "off", namespace=namespace)
    recorder = capture(lab, "wire", namespace, WIRE)
    # cls_u32 that matches all: unlike cls_matchall every kernel has it
    lab.command("tc", "-n", namespace, "qdisc", "add", "dev", interface, "clsact")
    for direction in ("ingress", "egress"):
        lab.command(
            "tc", "-n", namespace, "filter", "add", "dev", interface, direction, "protocol", "all",
            "u32", "match", "u32", "0", "0", "action", "mirred", "egress", "mirror", "dev", WIRE,
        )  # fmt: skip
    return recorder


def capture(
    lab: Lab, name: str, namespace: str, interface: str, snaplen: int = 2048
) -> tuple[Process, Path]:
    """Begin to write an interface's packets to a file of the lab; return the tcpdump and the file."""
    path = lab.folder / f"{name}.pcap"
    return capture_to(lab, path, namespace, interface, snaplen), path


def capture_to(
    lab: Lab, path: Path, namespace: str, interface: str, snaplen: int = 2048
) -> Process:
    """Begin to write an interface's packets to any file; return the tcpdump.

    Immediate mode has slots of ``snaplen`` octets each in its ring; full-size ones would be few.
    """
    # -Z root: Debian's tcpdump becomes another user, who may not write there
    argv = ["tcpdump", "-n", "-i", interface, "-w", str(path), "-U", "-Z", "root"]
    argv += ["--immediate-mode", "-s", str(snaplen), "-B", "65536"]
    return lab.start(f"tcpdump-{path.stem}", argv, namespace, ready="listening on")


def lost(recorder: Process) -> int:
    """Return how many packets a tcpdump that has ended says it could not take."""
    found = re.search(r"(\d+) packets? dropped by kernel", recorder.err.read_text())
    if found is None:
        raise LabError(f"{recorder.name} ended without its counts: {recorder.last_words()}")
    return int(found[1])
