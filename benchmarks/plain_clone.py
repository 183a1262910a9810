"""The peer that Python users write: one uvloop, one packet at a time, packet socket to VXLAN.

Usage: ``plain_clone.py eth0 198.51.100.7``; clones until SIGINT, then prints its counts as JSON.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
import sys

import uvloop

ETH_P_ALL = 3
SOL_PACKET, PACKET_STATISTICS = 263, 6
SO_RCVBUFFORCE = 33
HEADER = struct.pack(">II", 0x08000000, 42 << 8)


async def clone(interface: str, remote: str) -> None:
    """Clone every packet of ``interface`` until SIGINT."""
    source = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    source.bind((interface, ETH_P_ALL))
    source.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
    source.setblocking(False)
    tunnel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    tunnel.connect((remote, 4789))
    tunnel.setblocking(False)
    counts = {"received": 0, "sent": 0, "errors": 0}

    def on_readable() -> None:
        for _ in range(64):
            try:
                frame = source.recv(65535)
            except BlockingIOError:
                return
            counts["received"] += 1
            try:
                tunnel.send(HEADER + frame)
                counts["sent"] += 1
            except OSError:
                counts["errors"] += 1

    loop, done = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, done.set)
    loop.add_reader(source, on_readable)
    print("ready", flush=True)
    await done.wait()
    loop.remove_reader(source)
    packets, drops = struct.unpack("II", source.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    counts["kernel_dropped"] = drops + packets - drops - counts["received"]
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    uvloop.run(clone(sys.argv[1], sys.argv[2]))
