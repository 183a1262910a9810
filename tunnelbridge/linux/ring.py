"""Capture: one interface's packets as batches over a TPACKET_V3 ring that the kernel fills.

The ring is one shared memory of equal blocks. The kernel packs packets into a block, each behind a
``struct tpacket3_hdr``, and hands over the whole block when it is full or 2 ms old; we read
it in place and give it back. Source: the kernel's Documentation/networking/packet_mmap.rst and
net/packet/af_packet.c.
"""

from __future__ import annotations

import contextlib
import mmap
import socket
import struct
from collections import deque
from typing import Any, Final

import numpy as np

from tunnelbridge.batch import INBOUND, NEEDS_CSUM, OUTBOUND, VNET_HEADER, Batch, Column, Octets
from tunnelbridge.linux import libc, options, tpacket
from tunnelbridge.wire.ethernet import TPID_8021Q
from tunnelbridge.wire.octets import load

ENOUGH: Final = 2048
"""Packets in a batch above which its fixed cost does not matter any more."""


class Ring:
    """A receive ring on one interface, which hears nothing but what ``program`` accepts.

    Args:
        interface: its name, in the calling thread's network namespace.
        program: classic BPF filter; attached before the socket hears its first packet.
        ignore_outgoing: leave out what this host sends, before it costs a clone (Linux 4.20; older
            kernels deliver it all the same, so a filter for one direction must test it too).
        block_size: octets of a block, a multiple of the page size. A packet longer than a block is
            cut by the kernel.
        blocks: how many blocks; halved until the kernel has memory for them, down to 4.

    ``vnet`` tells whether the kernel describes unfinished checksums and segmentation here
    (PACKET_VNET_HDR). An interface that is down is accepted: packets come once it is up.

    Raises:
        UserError: no such interface, no CAP_NET_RAW, no memory, filter too large.

    """

    def __init__(
        self,
        interface: str,
        *,
        program: libc.Program,
        ignore_outgoing: bool = False,
        block_size: int = 1 << 18,
        blocks: int = 256,
    ) -> None:
        self.interface = interface
        self.block_size = block_size
        self._next = self._held = self._packets = self._drops = 0
        self._batches: deque[int] = deque()
        self._socket = tpacket.open_socket(interface, program, ignore_outgoing)
        try:
            self.blocks, self.vnet = tpacket.allocate(self._socket, block_size, blocks)
            self._map = mmap.mmap(self._socket.fileno(), self.blocks * block_size)
            self._words = memoryview(self._map).cast("I")
            self.memory: Octets = np.frombuffer(self._map, np.uint8)
            self.memory.flags.writeable = False  # other readers look at the same octets
            self._socket.bind((interface, tpacket.ETH_P_ALL))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Return the file descriptor that becomes readable when a block is ready."""
        return self._socket.fileno()

    def read(self, most: int = 1) -> Batch | None:
        """Return the packets of the next ready blocks, in place; None when no block is ready.

        Of up to ``most`` blocks, because super-packets fill a block each few and a batch has a fixed
        cost; fewer once they hold ENOUGH packets, or where the ring begins anew.

        The batch may be empty (a block that was closed because the next packet is longer than it)
        and is valid until :meth:`release`. Several batches may be held; they are released in
        the order in which they were read. ``wire_length`` is the packet's length at the interface
        (without a tag in ``vlan``), ``length`` what the filter's snap length left of it.
        """
        positions: list[Column] = []
        packets = 0
        while len(positions) < most and packets < ENOUGH and self._is_ready():
            if positions and self._next == 0:
                break
            positions.append(self._positions(self._next))
            packets += len(positions[-1])
            self._next = (self._next + 1) % self.blocks
            self._held += 1
        if not positions:
            return None
        self._batches.append(len(positions))
        return self._batch(positions[0] if len(positions) == 1 else np.concatenate(positions))

    def _is_ready(self) -> bool:
        # The status is read before anything behind it; the kernel wrote it last (smp_wmb).
        status = self._words[self._word(self._next, tpacket.BLOCK_STATUS)]
        return self._held < self.blocks and bool(status & tpacket.TP_STATUS_USER)

    def _word(self, block: int, field: int) -> int:
        """Return where a word of a block's description lies in ``_words``."""
        return block * self.block_size // 4 + field

    def _positions(self, block: int) -> Column:
        """Return the offset in ``memory`` of each packet header of a block.

        The one loop over packets: the headers form a chain (tp_next_offset), about 45 ns a link.
        """
        words = self._words
        at = self._word(block, words[self._word(block, tpacket.BLOCK_FIRST)] // 4)
        positions = []
        for _ in range(words[self._word(block, tpacket.BLOCK_PACKETS)]):
            positions.append(at)
            at += words[at] >> 2
        return np.array(positions, np.int64) * 4

    def _batch(self, position: Column) -> Batch:
        packet = load(self.memory, position, tpacket.PACKET)
        start = position + packet["mac"]
        seconds = packet["sec"].astype(np.int64)
        return Batch(
            memory=self.memory,
            start=start,
            length=packet["snaplen"].astype(np.int64),
            wire_length=packet["len"].astype(np.int64),
            timestamp=seconds * 1_000_000_000 + packet["nsec"],
            direction=np.where(
                packet["pkttype"] == tpacket.PACKET_OUTGOING, OUTBOUND, INBOUND
            ).astype(np.uint8),
            vlan=_tags(packet),
            vnet=self._unfinished(start),
        )

    def _unfinished(self, start: Column) -> np.ndarray[Any, np.dtype[np.void]] | None:
        """Return the virtio-net headers, or None where the kernel left nothing undone."""
        if not self.vnet:
            return None
        vnet = load(self.memory, start - VNET_HEADER.itemsize, VNET_HEADER)
        undone = (vnet["flags"] & NEEDS_CSUM).any() or vnet["gso_type"].any()
        return vnet if undone else None

    def release(self) -> None:
        """Give the blocks of the batch that was read first, of those held, back to the kernel."""
        if not self._batches:
            raise RuntimeError("release() without a batch from read()")
        for _ in range(self._batches.popleft()):
            block = (self._next - self._held) % self.blocks
            self._held -= 1
            self._words[self._word(block, tpacket.BLOCK_STATUS)] = tpacket.TP_STATUS_KERNEL

    def statistics(self) -> tuple[int, int]:
        """Return (packets, drops) so far: what the filter accepted, drops included; and drops.

        Drops are packets for which the ring had no free block.
        """
        value = self._socket.getsockopt(libc.SOL_PACKET, tpacket.PACKET_STATISTICS, 12)
        packets, drops, _ = struct.unpack("III", value)  # struct tpacket_stats_v3
        self._packets += packets  # reading resets the kernel's
        self._drops += drops
        return self._packets, self._drops

    def set_filter(self, program: libc.Program, *, ignore_outgoing: bool = False) -> None:
        """Replace the filter at once and without a gap; what came before stays readable."""
        tpacket.attach(self._socket, self.interface, program)
        tpacket.leave_out_outgoing(self._socket, ignore_outgoing)

    def stop(self) -> None:
        """Accept no further packet. What came before stays readable, the last within 2 ms."""
        libc.attach_filter(self._socket.fileno(), options.REFUSE_ALL)

    def clear_error(self) -> int:
        """Return the pending error (errno, 0 for none) and clear it.

        An interface that goes down reports ENETDOWN once; the socket works again when it is up.
        """
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def close(self) -> None:
        """End the capture. The memory stays until the last batch over it is gone."""
        if self._socket.fileno() < 0:
            return
        self.stop()  # the mapping holds a duplicate of the socket, which a held batch keeps open
        self._socket.close()
        self._words.release()
        del self.memory
        with contextlib.suppress(BufferError):
            self._map.close()


def _tags(packet: np.ndarray[Any, Any]) -> Column | None:
    """Return TPID << 16 | TCI of the tags the kernel took out (0: none), or None without any."""
    tagged = packet["status"] & tpacket.TP_STATUS_VLAN_VALID != 0
    if not tagged.any():
        return None
    named = packet["status"] & tpacket.TP_STATUS_VLAN_TPID_VALID != 0
    tpid = np.where(named, packet["tpid"], TPID_8021Q).astype(np.int64)
    return np.where(tagged, tpid << 16 | packet["tci"] & 0xFFFF, 0)
