"""A number per frame that stays the same while a packet is forwarded, and changes with its content.

What routers, switches and offloads change is left out: MAC addresses and VLAN tags of IP packets, TOS
and TTL (traffic class, flow label and hop limit), the IPv4 header's checksum, the checksums of TCP
and UDP, and padding behind the IP packet. All else counts, the whole payload included. Frames without
a good IP header are not routed, so their MAC addresses count; their tags do not.

The digest is keyed: who does not know the key cannot make two packets of one digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Batch, Column, Flags, Octets
from tunnelbridge.wire import ethernet, ipv4, ipv6
from tunnelbridge.wire.flow import ADDRESSES6, MACS, Flows, Words, mix, read_flows
from tunnelbridge.wire.octets import load

TCP: Final = 6
UDP: Final = 17
WORD: Final = 8
_LONGEST: Final = 1 << 18
"""Octets of the longest frame a slab or a capture file can hold."""
_CLASSES: Final = np.array(
    [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 512, 1024, 2048, 8192,
     _LONGEST // WORD]
)  # fmt: skip
"""Words to which lengths are rounded up, so that a batch is read in few pieces."""
_FIXED6: Final = ipv6.HEADER.itemsize
_ODD: Final = np.uint64(0x9E3779B97F4A7C15)
_HALF: Final = np.uint64(32)
_MIXING: Final = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT: Final = np.uint64(31)
# Octets 16 and 17 of a TCP header and 6 and 7 of a UDP header, in words of little-endian order.
_TCP_CHECKSUM: Final = (2, np.uint64(0xFFFF_FFFF_FFFF_0000))
_UDP_CHECKSUM: Final = (0, np.uint64(0x0000_FFFF_FFFF_FFFF))


@dataclass(slots=True)
class Digests:
    """What is compared of n frames; columns of shape (n,)."""

    value: Words
    path: Words
    """Of what changes on the way: the stream, direction, MAC addresses, tag and TTL."""
    is_vague: Flags
    """TCP without an IP identification: a retransmission may have the same octets as a copy."""

    def select(self, index: npt.NDArray[Any]) -> Digests:
        """Return the rows at ``index``."""
        return Digests(self.value[index], self.path[index], self.is_vague[index])


class Digester:
    """Computes digests under one key."""

    def __init__(self, key: int) -> None:
        generator = np.random.Generator(np.random.PCG64(key))
        self._key: Words = generator.integers(0, 1 << 64, _LONGEST // WORD, np.uint64)
        self._seed: Words = generator.integers(0, 1 << 64, 4, np.uint64)

    def read(self, frames: Batch, stream: Column, flows: Flows | None = None) -> Digests:
        """Digest frames of at least 14 octets, without heads (:mod:`collector.contiguous`)."""
        memory, end = frames.memory, frames.start + frames.length
        if flows is None:
            flows = read_flows(memory, frames.start, end)
        good = flows.protocol >= 0
        is4 = good & (flows.ethertype == ethernet.IPV4)
        is6 = good & ~is4
        header4 = load(memory, flows.payload, ipv4.HEADER)
        head = np.empty(len(frames), np.uint64)
        ttl = np.zeros(len(frames), np.uint64)
        begin = np.where(good, flows.transport, flows.payload - 2)
        for rows, read in (
            (np.flatnonzero(is4), self._ipv4),
            (np.flatnonzero(is6), self._ipv6),
            (np.flatnonzero(~good), self._macs),
        ):
            if rows.size:
                head[rows], ttl[rows] = read(memory, flows, rows)
        whole = np.where(good, flows.end, end)
        is_first = ~flows.fragment if flows.first_fragment is None else (
            ~flows.fragment | flows.first_fragment
        )  # fmt: skip
        protocol = np.where(is_first, flows.protocol, -1)
        body = self._sums(memory, begin, np.maximum(whole - begin, 0), protocol)
        value = mix(head + body * _ODD + (whole - begin).astype(np.uint64))
        no_identification = is6 | (is4 & (header4["identification"] == 0))
        return Digests(
            value,
            self._path(frames, stream, flows.tag, ttl),
            (flows.protocol == TCP) & no_identification & ~flows.fragment,
        )

    def _ipv4(self, memory: Octets, flows: Flows, rows: Column) -> tuple[Words, Words]:
        """Return the digests of IPv4 headers, and their TTLs."""
        header = load(memory, flows.payload[rows], ipv4.HEADER)
        field = {name: header[name].astype(np.uint64) for name in ipv4.HEADER.names or ()}
        rest = (field["total_length"] << _HALF) | (field["identification"] << np.uint64(16))
        rest ^= (field["fragment"] << np.uint64(48)) | field["protocol"]
        addresses = (field["source"] << _HALF) | field["destination"]
        value = mix(addresses ^ self._seed[0]) + mix(rest ^ self._seed[1])
        return value + self._options(memory, flows, rows, ipv4.HEADER.itemsize), field["ttl"]

    def _ipv6(self, memory: Octets, flows: Flows, rows: Column) -> tuple[Words, Words]:
        at = flows.payload[rows]
        header, addresses = load(memory, at, ipv6.HEADER), load(memory, at + 8, ADDRESSES6)
        value = mix(header["payload_length"].astype(np.uint64) ^ self._seed[2])
        value += header["next_header"]
        for column in (addresses["source"], addresses["destination"]):
            for half in (0, 1):
                value = mix(value ^ column[:, half].astype(np.uint64)) + self._seed[2]
        value += self._options(memory, flows, rows, _FIXED6)
        return value, header["hop_limit"].astype(np.uint64)

    def _macs(self, memory: Octets, flows: Flows, rows: Column) -> tuple[Words, Words]:
        value = _mac_words(memory, flows.start[rows])
        return mix(value ^ self._seed[3]), np.zeros(len(rows), np.uint64)

    def _options(self, memory: Octets, flows: Flows, rows: Column, fixed: int) -> Words:
        """Return digests of IPv4 options or IPv6 extension headers, which few packets have."""
        start = flows.payload[rows] + fixed
        length = np.maximum(flows.transport[rows] - start, 0)
        if not length.any():
            return np.zeros(len(rows), np.uint64)
        return mix(self._sums(memory, start, length, np.full(len(rows), -1)))

    def _path(self, frames: Batch, stream: Column, tag: Column, ttl: Words) -> Words:
        told = (ttl << np.uint64(1)) | frames.direction
        origin = (stream.astype(np.uint64) << _HALF) | tag.astype(np.uint64)
        macs = _mac_words(frames.memory, frames.start)
        path: Words = mix(origin + self._seed[0]) + mix(macs ^ (told << np.uint64(48)))
        return path

    def _sums(self, memory: Octets, start: Column, length: Column, protocol: Column) -> Words:
        """Digest slices; of TCP and UDP, by ``protocol``, without their checksums."""
        total = np.zeros(len(start), np.uint64)
        size = np.searchsorted(_CLASSES, (length + WORD - 1) // WORD)
        for number in np.unique(size).tolist():
            if number:
                rows = np.flatnonzero(size == number)
                words = _words(memory, start[rows], length[rows], int(_CLASSES[number]))
                for which, (place, mask) in ((TCP, _TCP_CHECKSUM), (UDP, _UDP_CHECKSUM)):
                    if place < words.shape[1]:
                        words[protocol[rows] == which, place] &= mask
                total[rows] = self._mixed(words, (length[rows] + WORD - 1) // WORD)
        return total

    def _mixed(self, words: Words, count: Column) -> Words:
        """Sum the first ``count`` words of each row, each mixed with the key of its place.

        As :func:`tunnelbridge.wire.flow.mix`, in place: less would let changes in two words cancel
        each other out in the sum.
        """
        size = words.shape[1]
        words ^= self._key[:size]
        for shift, factor in _MIXING:
            words ^= words >> shift
            words *= factor
        words ^= words >> _LAST_SHIFT
        if (count != size).any():
            words *= np.arange(size) < count[:, None]
        total: Words = words.sum(axis=1, dtype=np.uint64)
        return total


def _mac_words(memory: Octets, start: Column) -> Words:
    macs = load(memory, start, MACS)
    words: Words = mix(macs["high"].astype(np.uint64)) + macs["low"]
    return words


def _words(memory: Octets, start: Column, length: Column, size: int) -> Words:
    """Return slices as rows of ``size`` words, shape (n, size); zeros in the last one's rest only."""
    octets = size * WORD
    header: np.dtype[Any] = np.dtype(f"V{octets}")
    records = load(memory, start, header)
    near = np.flatnonzero(start + octets > memory.size)
    if near.size:  # read those at the memory's end from a longer copy of it
        lowest = int(start[near].min())
        longer = np.concatenate([memory[lowest:], np.zeros(octets, np.uint8)])
        records[near] = load(longer, start[near] - lowest, header)
    words = records.view("<u8").reshape(len(start), size)
    rest = length % WORD
    partial = np.flatnonzero(rest)
    if partial.size:
        mask = (np.uint64(1) << (rest[partial] * 8).astype(np.uint64)) - np.uint64(1)
        words[partial, length[partial] // WORD] &= mask
    return words
