"""Send frames from an interface as fast as it goes, or at a rate; print how many as JSON.

    generator.py -i eth0 --to 02:00:00:00:00:02 --size 64 --flows 1000 --rate 300000 --seconds 3

One sendmmsg on AF_PACKET takes 1024 frames past the queueing discipline (PACKET_QDISC_BYPASS). On a
veth what the other end does with a frame in softirq happens on this process's core.
"""

from __future__ import annotations

import argparse
import errno
import ipaddress
import json
import signal
import socket
import sys
import time
from typing import Final

import frames
import numpy as np

from tunnelbridge.linux import libc

PACKET_QDISC_BYPASS: Final = 20
MOST: Final = 1024  # messages per sendmmsg (UIO_MAXIOV)
NAP: Final = 0.0005


class Generator:
    """Sends the rows of ``octets`` over and over."""

    def __init__(self, interface: str, octets: frames.Frames) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(libc.SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        self._socket.bind((interface, 0))
        flows, size = octets.shape
        rows = np.arange(-(-MOST // flows) * flows) % flows
        self._octets = octets
        self._vectors = np.zeros(len(rows), libc.IOVEC)
        self._vectors["base"] = libc.address(octets) + rows * octets.strides[0]
        self._vectors["length"] = size
        self._messages = np.zeros(len(rows), libc.MMSGHDR)
        step = self._vectors.itemsize
        self._messages["iov"] = libc.address(self._vectors) + np.arange(len(rows)) * step
        self._messages["iovlen"] = 1
        self._next = 0
        self.sent = self.refused = 0
        self.stopped = False

    def send(self, wanted: int) -> None:
        """Send at most ``wanted`` frames with one system call."""
        count = min(wanted, MOST, len(self._messages) - self._next)
        at = libc.address(self._messages) + self._next * self._messages.itemsize
        try:
            done = libc.sendmmsg(self._socket.fileno(), at, count, 0)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self.refused += 1  # the device took none
            return
        self.sent += done
        self._next = (self._next + done) % len(self._messages)

    def run(self, rate: float | None, seconds: float, count: int | None) -> float:
        """Send until time or count is up; return how long it took in seconds."""
        began = now = time.monotonic()
        limit = sys.maxsize if count is None else count
        while now - began < seconds and self.sent < limit and not self.stopped:
            due = limit if rate is None else min(limit, int((now - began) * rate) + 1)
            if due > self.sent:
                self.send(due - self.sent)
            else:
                time.sleep(NAP)
            now = time.monotonic()
        return now - began

    def stop(self, *_: object) -> None:
        """End :meth:`run` early."""
        self.stopped = True


def build(arguments: argparse.Namespace) -> frames.Frames:
    """Return the frames that the command line asks for."""
    mac = bytes.fromhex(arguments.to.replace(":", ""))
    if arguments.encapsulation == "none":
        return frames.plain(arguments.size, arguments.flows, mac)
    make = {"vxlan": frames.vxlan, "gre": frames.gre}[arguments.encapsulation]
    ends = [int(ipaddress.IPv4Address(each)) for each in (arguments.source, arguments.destination)]
    return make(arguments.size, arguments.flows, mac, *ends)


def main() -> None:
    """Generate as the command line says."""
    parser = argparse.ArgumentParser(description="Send frames and print how many as JSON.")
    parser.add_argument("-i", "--interface", required=True)
    parser.add_argument("--to", required=True, metavar="MAC")
    parser.add_argument("--size", type=int, default=64, help="octets of a frame, tunnel apart")
    parser.add_argument("--flows", type=int, default=1)
    parser.add_argument("--encapsulation", choices=("none", "vxlan", "gre"), default="none")
    parser.add_argument("--source", default="198.51.100.1", help="outer source")
    parser.add_argument("--destination", default="198.51.100.7", help="outer destination")
    parser.add_argument("--rate", type=float, help="frames a second; without it flat out")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--count", type=int)
    arguments = parser.parse_args()
    generator = Generator(arguments.interface, build(arguments))
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, generator.stop)
    seconds = generator.run(arguments.rate, arguments.seconds, arguments.count)
    report = {"sent": generator.sent, "refused": generator.refused, "seconds": seconds}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
