"""Make ``http.pcap``: small HTTP traffic of our own lab, as it is on the wire.

    sudo .venv/bin/python netns-lab/captures/make.py

The kernel has segmented and checksummed every frame (``truth.py``).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import compare
import topology
import traffic
import truth
from netlab import Lab, inside
from process import wait_until

CAPTURE = Path(__file__).parent / "http.pcap"


def talk() -> bytes:
    """Be the client: a page, a file over IPv6, an upload; return the last mark."""
    traffic.get(topology.HOST, 0)
    traffic.get(topology.HOST6, 20_000)
    traffic.post(topology.HOST, 12_000)
    return traffic.mark(topology.HOST, "end")


def main() -> None:
    with Lab() as lab:
        net = topology.build(lab)
        host = traffic.Host(net.host)
        lab.defer(host.close)
        recorder, recorded = truth.record(lab, net.host, topology.MIRRORED)
        last = inside(net.client, talk)
        wait_until(lambda: compare.holds(compare.read(recorded), last), 5, "the last mark")
        recorder.stop()
        shutil.copyfile(recorded, CAPTURE)
    print(f"{CAPTURE}: {len(compare.read(CAPTURE))} frames, {CAPTURE.stat().st_size:,} octets")


if __name__ == "__main__":
    main()
