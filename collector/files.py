"""``collector decap``: the same decapsulation over capture files.

A live socket hands out whole datagrams; in a file the outer packets may be fragments, so these are
put together first. A reassembled datagram takes the place and time of its last fragment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from collector.decap import Decapsulated, decapsulate
from collector.ledger import CollectorLedger, SinkLedger
from collector.reassembly import Reassembler
from collector.streams import StreamTable
from tunnelbridge import console
from tunnelbridge.batch import Batch, Column, from_packets
from tunnelbridge.capture.ethernet import as_ethernet
from tunnelbridge.capture.reader import open_capture
from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux.pcap_writer import RECORD_HEADER, PcapWriter, open_pcap
from tunnelbridge.wire import ethernet, ipv4, ipv6, udp
from tunnelbridge.wire.layer import Kind
from tunnelbridge.wire.octets import load
from tunnelbridge.wire.reasons import Reason, count
from tunnelbridge.wire.walk import LEVELS


class FileDecapsulator:
    """Decapsulates one capture file into another."""

    def __init__(
        self,
        levels: int = LEVELS,
        ports: dict[int, Kind] | None = None,
        source_time: bool = False,
    ) -> None:
        self.ledger = CollectorLedger()
        self.streams = StreamTable()
        self._levels = levels
        self._source_time = source_time
        self._ports = udp.port_table(udp.PORTS | (ports or {}))
        self._reassembler = Reassembler()

    def run(self, source: Path, destination: str) -> str | None:
        """Copy the mirrored frames of ``source``; return where the file is damaged, if it is."""
        capture = open_capture(source)
        if destination != "-" and Path(destination).exists() and source.samefile(destination):
            raise UserError(f"{destination} is the file that is read: choose another name")
        fd = open_pcap(destination)
        sink = SinkLedger(f"pcap {destination}")
        self.ledger.sinks = [sink]
        try:
            writer = PcapWriter(fd)
            for captured in capture.batches():
                for found in self._decapsulate(as_ethernet(captured.batch, captured.linktype)):
                    result = writer.write(found.batch)
                    sink.delivered += result.packets
                    sink.octets += result.octets - result.packets * RECORD_HEADER.itemsize
                    if result.error:
                        raise UserError(f"cannot write {destination}: {result.error}")
            self._reject_incomplete()
        finally:
            os.close(fd)
        return capture.damage

    def _decapsulate(self, batch: Batch) -> Iterator[Decapsulated]:
        """Yield frames in the order of the file; fragments wait for their last one."""
        found = self._take_off(batch, Kind.ETHERNET)
        fragments = np.flatnonzero(found.reason == Reason.IP_FRAGMENT)
        self.ledger.received += len(batch) - len(fragments)
        self.ledger.rejected.update(count(found.reason[found.reason != Reason.IP_FRAGMENT]))
        done = 0
        for position in fragments.tolist():
            whole = self._reassemble(batch, position)
            if whole is None:
                continue
            upto = int(np.searchsorted(found.index, position))
            yield self._account(batch, found.select(np.arange(done, upto)))
            done = upto
            self.ledger.received += 1
            first = Kind.IPV6 if whole.memory[0] >> 4 == 6 else Kind.IPV4
            late = self._take_off(whole, first)
            self.ledger.rejected.update(count(late.reason))
            yield self._account(whole, late, first)
        yield self._account(batch, found.select(np.arange(done, len(found.index))))

    def _take_off(self, batch: Batch, first: Kind) -> Decapsulated:
        return decapsulate(batch, first, self._ports, self._levels, self._source_time)

    def _reassemble(self, batch: Batch, position: int) -> Batch | None:
        """Give one fragment to the reassembler; return the datagram it completes."""
        start = batch.start[position : position + 1]
        end = start + batch.length[position]
        packet = ethernet.ethertypes(batch.memory, start, end).payload
        octets = batch.memory[int(packet[0]) : int(end[0])].tobytes()
        timestamp = int(batch.timestamp[position])
        whole = self._reassembler.add(octets, timestamp)
        return None if whole is None else from_packets([whole], timestamp)

    def _reject_incomplete(self) -> None:
        """Count the datagrams of which fragments are missing or make no sense."""
        of = self._reassembler
        failed = of.pending + of.timed_out + of.evicted + of.overlapped + of.oversized
        failed += of.malformed
        self.ledger.received += failed
        self.ledger.rejected.update({Reason.IP_FRAGMENT.slug: failed} if failed else {})

    def _account(
        self, batch: Batch, found: Decapsulated, first: Kind = Kind.ETHERNET
    ) -> Decapsulated:
        self.ledger.decapsulated += len(found.index)
        self.streams.take(
            _sources(batch, found.index, first),
            found.encapsulation,
            found.identifier,
            found.sequence,
            found.batch.total_length,
            found.truncated,
            batch.timestamp[found.index],
        )
        return found


def _sources(
    batch: Batch, index: Column, first: Kind
) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Return the outer source addresses (m, 16) of packets, IPv4 as mapped IPv6."""
    start = batch.start[index]
    if first == Kind.ETHERNET:
        start = ethernet.ethertypes(batch.memory, start, start + batch.length[index]).payload
    source = np.zeros((len(index), 16), np.uint8)
    version = batch.memory[np.minimum(start, batch.memory.size - 1)] >> 4
    is4 = version == 4
    source[is4, 10:12] = 0xFF
    address = load(batch.memory, start[is4], ipv4.HEADER)["source"]
    source[is4, 12:] = np.ascontiguousarray(address).view(np.uint8).reshape(-1, 4)
    address = load(batch.memory, start[~is4], ipv6.HEADER)["source"]
    source[~is4] = np.ascontiguousarray(address).view(np.uint8).reshape(-1, 16)
    return source


def decap(
    source: Path,
    destination: str,
    levels: int,
    ports: dict[int, Kind],
    stats: str | None,
    source_time: bool = False,
) -> None:
    """Run ``collector decap``; raises UserError."""
    console.check_writable(stats)
    if destination == stats == "-":
        raise UsageError("packets and --stats cannot share standard output")
    work = FileDecapsulator(levels, ports, source_time)
    try:
        damage = work.run(source, destination)
    finally:
        if work.ledger.sinks:  # something was begun
            ledger = work.ledger.as_dict("collector decap", work.streams.ledgers())
            console.report(ledger, "end of file")
            console.write_stats(stats, ledger)
    if damage:
        raise UserError(f"{source}: {damage}; what came before was decapsulated")
