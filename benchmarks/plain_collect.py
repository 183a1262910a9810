"""The peer that Python users write: one uvloop datagram endpoint, VXLAN taken off, into a pcap.

Usage: ``plain_collect.py 198.51.100.7 FILE``; collects until SIGINT, then prints its counts as JSON.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import BinaryIO

import uvloop

SO_RCVBUFFORCE, SO_MEMINFO = 33, 55
HEADER = 8
RECORD = struct.Struct("=IIII")


class Collector(asyncio.DatagramProtocol):
    """Writes the frame in each VXLAN datagram."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.received = 0

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002
        """Write one frame."""
        self.received += 1
        now = time.time_ns()
        size = len(data) - HEADER
        self.file.write(RECORD.pack(now // 10**9, now % 10**9, size, size) + data[HEADER:])


async def collect(address: str, path: str) -> None:
    """Collect until SIGINT."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGINT, done.set)
    with Path(path).open("wb") as file:  # noqa: ASYNC230
        file.write(struct.pack("=IHHIIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1))
        transport, protocol = await loop.create_datagram_endpoint(
            lambda: Collector(file), local_addr=(address, 4789)
        )
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        print("ready", flush=True)
        await done.wait()
        drops = struct.unpack("=9I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[8]
        transport.abort()
    print(json.dumps({"received": protocol.received, "socket_dropped": drops}), flush=True)


if __name__ == "__main__":
    uvloop.run(collect(sys.argv[1], sys.argv[2]))
