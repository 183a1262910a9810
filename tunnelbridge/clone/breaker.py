"""The breaker: the same packet coming back in a tunnel, twice, is a loop whatever it looks like.

Every cloned packet is remembered by a digest of its IP packet together with its generation. The
digest is of addresses, identification, ports, and TCP's sequence number or UDP's first payload octets:
what tunnels do not change, not even those that cut, nor :mod:`tunnelbridge.restore`, which comes later
and writes lengths and checksums. A frame that carries a remembered packet inside a tunnel is of the
next generation: an echo. Hosts that mirror both the inside and the outside of their own overlay see
first echoes all day; a second echo, a packet inside a tunnel inside a tunnel of which both shorter
forms were cloned, is refused. Of several tunnels around each other, the one whose packet is known best
counts.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column, Flags, Octets
from tunnelbridge.wire import ipv4, ipv6
from tunnelbridge.wire.ethernet import HEADER as ETHERNET
from tunnelbridge.wire.flow import Flows, read_flows
from tunnelbridge.wire.layer import Codes, Kind
from tunnelbridge.wire.octets import load

SLOTS: Final = 1 << 16
LAST_GENERATION: Final = 2
_WORD: Final = np.dtype([("value", "=u8")])
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)


def _mask(octets: str) -> np.uint64:
    """Return a mask for words as they lie in memory, whatever this machine's byte order."""
    return np.uint64(int.from_bytes(bytes.fromhex(octets), sys.byteorder))


_IPV4_START: Final = _mask("ffff 0000 ffff ffff")
"""Without the total length, which is the super-packet's until it is cut."""
_IPV6_START: Final = _mask("ffff ffff 0000 00ff")
"""Without the payload length, and the next header: BIG TCP adds one."""
_IP_MIDDLE: Final = _mask("ffff 0000 ffff ffff")
"""Without IPv4's header checksum; of IPv6's source address six octets are left."""
_UDP_START: Final = _mask("ffff ffff 0000 0000")
"""Without length and checksum, which may be unfinished."""
_ALL: Final = _mask("ffff ffff ffff ffff")

Digests = npt.NDArray[np.uint64]


@dataclass(slots=True)
class Tunnelled:
    """Frames and packets found inside tunnels, columns of shape (k,)."""

    frame: Column
    """Which frame of the batch each was found in; a frame may have several, one in another."""
    start: Column
    end: Column
    kind: Codes
    """ETHERNET, IPV4 or IPV6."""


class Breaker:
    """A direct-mapped table of digests; bounded, newer packets push out older ones."""

    def __init__(self) -> None:
        self.armed = False
        """Set with the first tunnelled frame; until then nothing is remembered."""
        self._digests = np.zeros(SLOTS, np.uint64)
        self._generations = np.zeros(SLOTS, np.uint8)

    def generations(self, memory: Octets, tunnelled: list[Tunnelled], count: int) -> Codes:
        """Return the generation of each of ``count`` frames: 0, 1 for an echo, 2 to be refused."""
        generation = np.zeros(count, np.uint8)
        for each in tunnelled:
            self.armed |= len(each.frame) > 0
            for frame, digest in _inner_digests(memory, each):
                slot = _slots(digest)
                known = self._digests[slot] == digest
                echo = np.minimum(self._generations[slot] + 1, LAST_GENERATION)
                generation[frame] = np.maximum(generation[frame], np.where(known, echo, 0))
        return generation

    def remember(self, memory: Octets, flows: Flows, cloned: Flags, generation: Codes) -> None:
        """Remember the frames of the batch that will be cloned, once armed."""
        chosen = np.flatnonzero(cloned & (flows.transport > flows.payload))
        if not self.armed or not chosen.size:
            return
        digest = _digest(
            memory,
            flows.payload[chosen],
            flows.transport[chosen],
            flows.end[chosen],
            flows.kind[chosen],
        )
        slot = _slots(digest)
        self._digests[slot] = digest
        self._generations[slot] = generation[chosen]


def _inner_digests(memory: Octets, tunnelled: Tunnelled) -> list[tuple[Column, Digests]]:
    """Digest what is inside tunnels: (frame numbers, digests), a pair for each kind present."""
    pairs = []
    for kind in (Kind.ETHERNET, Kind.IPV4, Kind.IPV6):
        chosen = np.flatnonzero(
            (tunnelled.kind == kind) & (tunnelled.end - tunnelled.start >= ETHERNET.itemsize)
        )
        if not chosen.size:
            continue
        payload, end = tunnelled.start[chosen], tunnelled.end[chosen]
        if kind == Kind.ETHERNET:
            flows = read_flows(memory, payload, end)
            payload, transport, end, carried = flows.payload, flows.transport, flows.end, flows.kind
        else:
            found = (ipv4 if kind == Kind.IPV4 else ipv6).decode(memory, payload, end)
            transport, end, carried = found.payload, found.end, found.kind
        is_ip = transport > payload
        digest = _digest(memory, payload, transport, end, carried)
        pairs.append((tunnelled.frame[chosen[is_ip]], digest[is_ip]))
    return pairs


def _digest(
    memory: Octets, payload: Column, transport: Column, end: Column, carried: Codes
) -> Digests:
    """Digest IP packets: their first 24 octets and the first 8 behind their header.

    Left out is what restoring changes. UDP's first payload octets stand in for its checksum.
    """
    is_udp = carried == Kind.UDP
    is_ipv6 = memory[np.minimum(payload, memory.size - 1)] >> 4 == 6
    digest = np.zeros(len(payload), np.uint64)
    for position, mask in (
        (payload, np.where(is_ipv6, _IPV6_START, _IPV4_START)),
        (payload + 8, _IP_MIDDLE),
        (payload + 16, _ALL),
        (transport, np.where(is_udp, _UDP_START, _ALL)),
        (transport + 8, np.where(is_udp, _ALL, np.uint64(0))),
    ):
        word = load(memory, position, _WORD)["value"] & mask
        digest = (digest ^ np.where(position + _WORD.itemsize <= end, word, 0)) * _ODD
        digest ^= digest >> np.uint64(29)
    return digest


def _slots(digest: Digests) -> Column:
    return (digest >> np.uint64(48)).astype(np.int64)
