"""Give packets other IP addresses and ports, with their checksums right.

Checksums are updated by what has changed (RFC 1624, equation 3), so that nothing of the payload is
read: a packet that a snap length has cut, or a first fragment, gets the checksum its whole would have,
and a wrong checksum stays as wrong as it was. Fields that lie beyond what is present stay unwritten.

Only the IP header right behind the MAC header counts. What it carries further in (a tunnel's packet,
the packet that an ICMP error quotes) stays as it was.
"""

from __future__ import annotations

import ipaddress

import numpy as np

from tunnelbridge.batch import Batch, Column, Flags, Octets, zeros
from tunnelbridge.restore import crc32c, heads
from tunnelbridge.restore.internet import (
    CHECKSUM_AT,
    HAS_PORTS,
    HAS_PSEUDO_HEADER,
    IS_ECHO,
    ROOM,
    SCTP,
    UDP,
    UDPLITE,
    Internet,
    find,
)
from tunnelbridge.restore.window import window
from tunnelbridge.wire import ethernet, ipv4, ipv6
from tunnelbridge.wire.new_addresses import LEAVE, NewAddresses
from tunnelbridge.wire.octets import checksum


def readdress(batch: Batch, header_length: Column, ethertype: Column, new: NewAddresses) -> Batch:
    """Return the batch with ``new`` addresses in new heads; memory and given heads stay as they are.

    ``batch`` holds frames as they are on the wire (behind :func:`~.restore.restore`);
    ``header_length`` (octets of the MAC header with its tags) and ``ethertype`` are columns of all
    its packets. A packet without an IP header of the announced version stays as it is. A UDP
    checksum of 0 stays 0, and one that becomes 0 is 0xffff (RFC 768). IPv6 extension headers are
    walked. Of fragments only the first has ports and a checksum. The CRC of a fragmented SCTP packet
    whose ports change is left, because the first fragment does not say how long the whole is.
    """
    rows = new.rows
    if not rows.size:
        return batch
    header_length, ethertype = header_length[rows], ethertype[rows]
    total = batch.total_length[rows]
    width = int(header_length.max()) + ROOM
    if batch.head_length is not None:
        width = max(width, int(batch.head_length[rows].max()))
    octets = window(batch, rows, width)
    headers = find(octets, header_length, total, ethertype)
    if ((headers.need > width) & (total > width)).any():  # long IPv6 extension headers
        octets = window(batch, rows, int(total.max()))
        headers = find(octets, header_length, total, ethertype)
    _write(headers, new)
    return _attach(batch, rows, octets, headers)


def to_member(batch: Batch, header_length: Column, ethertype: Column, ip: str) -> tuple[Batch, int]:
    """Send every packet to ``ip``: return the batch, and how many packets are of another family."""
    address = ipaddress.ip_address(ip)
    wanted = ethernet.IPV4 if address.version == 4 else ethernet.IPV6
    rows = np.flatnonzero(ethertype == wanted)
    high, low = divmod(int(address), 2**64)
    destination = np.full((len(rows), 2), (high, low), np.uint64)
    changed = readdress(
        batch, header_length, ethertype, NewAddresses(rows, destination=destination)
    )
    return changed, len(batch) - len(rows)


def _write(headers: Internet, new: NewAddresses) -> None:
    """Write addresses, ports, identifiers, then the checksums that cover them."""
    internet, pseudo = _write_addresses(headers, new)
    whole = headers.network + ipv4.HEADER.itemsize <= headers.present
    chosen = np.flatnonzero((headers.version == 4) & whole)
    _adjust(headers.octets, headers.network[chosen] + 10, internet[chosen])
    change = _write_transport(headers, new) + pseudo * HAS_PSEUDO_HEADER[headers.protocol]
    offset = CHECKSUM_AT[headers.protocol]
    at = headers.transport + offset
    chosen = np.flatnonzero((offset >= 0) & (at + 2 <= headers.limit))
    datagram = np.isin(headers.protocol[chosen], (UDP, UDPLITE))
    unused = datagram & (heads.read(headers.octets, at[chosen], ">u2") == 0)
    chosen, datagram = chosen[~unused], datagram[~unused]
    _adjust(headers.octets, at[chosen], change[chosen], never_zero=datagram)


def _write_addresses(headers: Internet, new: NewAddresses) -> tuple[Column, Column]:
    """Write addresses; return how the sums of IP header and pseudo-header change by it."""
    internet, pseudo = zeros(len(headers.network)), zeros(len(headers.network))
    for version, size, source, destination in ((4, 4, 12, 16), (6, 16, 8, 24)):
        chosen = np.flatnonzero(headers.version == version)
        for addresses, offset in ((new.source, source), (new.destination, destination)):
            if addresses is None or not chosen.size:
                continue
            at = headers.network[chosen] + offset
            before = _sum(headers.octets, at, size)
            if version == 6:
                heads.view(headers.octets, ">u8")[at] = addresses[chosen, 0]
                heads.view(headers.octets, ">u8")[at + 8] = addresses[chosen, 1]
            else:
                heads.view(headers.octets, ">u4")[at] = addresses[chosen, 1]
            change = _sum(headers.octets, at, size) - before + size // 2 * 0xFFFF
            internet[chosen] += change
            if version == 6 and offset == destination:
                change[_is_routed(headers, chosen)] = 0
            pseudo[chosen] += change
    return internet, pseudo


def _is_routed(headers: Internet, chosen: Column) -> Flags:
    """Tell IPv6 packets whose pseudo-header has the final address of a routing header instead.

    It does as long as segments are left (RFC 8200 §8.1, RFC 8754 §4.3).
    """
    octets, end = headers.octets, headers.transport[chosen]
    at = headers.network[chosen] + ipv6.HEADER.itemsize
    kind = heads.read(octets, headers.network[chosen] + 6, "u1")
    routed = np.zeros(len(chosen), np.bool_)
    for _ in range(ipv6.MAX_EXTENSIONS + 1):
        if not (at < end).any():
            break
        left = heads.read(octets, at + 3, "u1")
        routed |= (at < end) & (kind == ipv6.ROUTING) & (left > 0)
        units = heads.read(octets, at + 1, "u1")
        size = np.where(kind == ipv6.AUTHENTICATION, (units + 2) * 4, (units + 1) * 8)
        size[kind == ipv6.FRAGMENT] = ipv6.EXTENSION.itemsize
        kind = heads.read(octets, at, "u1")
        at = at + size
    return routed


def _write_transport(headers: Internet, new: NewAddresses) -> Column:
    """Write ports and identifiers, and SCTP's CRC; return how the sum of what was written changes."""
    ported = HAS_PORTS[headers.protocol]
    sctp = np.flatnonzero((headers.protocol == SCTP) & ~headers.fragment)
    before = heads.read(headers.octets, headers.transport[sctp], "<u4")
    change = _put(headers, ported, 0, new.source_port)
    change += _put(headers, ported, 2, new.destination_port)
    if new.identifier is not None:
        kind = heads.read(headers.octets, headers.transport, "u1")
        echo = IS_ECHO[headers.protocol, kind] & (headers.transport + 6 <= headers.present)
        change += _put(headers, echo, 4, new.identifier)
    begin = headers.transport[sctp]
    moved = before ^ heads.read(headers.octets, begin, "<u4")
    wrong = np.flatnonzero((moved != 0) & (begin + 12 <= headers.limit[sctp]))
    if wrong.size:
        flipped = crc32c.after(moved[wrong], headers.end[sctp[wrong]] - begin[wrong])
        heads.view(headers.octets, "<u4")[begin[wrong] + 8] ^= flipped
    return change


def _put(headers: Internet, where: Flags, offset: int, value: Column | None) -> Column:
    """Write a 16-bit transport field; return how the sum changes (RFC 1624, equation 3)."""
    change = zeros(len(headers.network))
    if value is None:
        return change
    at = headers.transport + offset
    chosen = np.flatnonzero(where & (value != LEAVE) & (at + 2 <= headers.limit))
    before = heads.read(headers.octets, at[chosen], ">u2")
    heads.view(headers.octets, ">u2")[at[chosen]] = value[chosen]
    change[chosen] = value[chosen] - before + 0xFFFF
    return change


def _sum(octets: Octets, at: Column, size: int) -> Column:
    """Sum the 16-bit words of each address."""
    words = heads.view(octets, ">u2")[at[:, None] + np.arange(0, size, 2)]
    total: Column = words.sum(axis=1, dtype=np.int64)
    return total


def _adjust(octets: Octets, at: Column, change: Column, never_zero: Flags | None = None) -> None:
    """Update the checksums at these positions for a changed sum."""
    value = checksum(0xFFFF - heads.read(octets, at, ">u2") + change)
    if never_zero is not None:
        value[never_zero & (value == 0)] = 0xFFFF
    heads.view(octets, ">u2")[at] = value


def _attach(batch: Batch, rows: Column, octets: Octets, headers: Internet) -> Batch:
    """Make the copies the heads of the packets that were changed."""
    changed = np.flatnonzero(headers.version > 0)
    rows = rows[changed]
    before = zeros(len(rows)) if batch.head_length is None else batch.head_length[rows]
    length = np.maximum(np.minimum(headers.need[changed], batch.total_length[rows]), before)
    start = changed * octets.shape[1]
    return heads.attach(batch, rows, octets.reshape(-1), start, length, skip=length - before)
