"""Stack the headers of one tunnel: template once, patch per batch.

An :class:`Encapsulation` owns a matrix of outer headers, one row per clone, prefilled with the
tunnel's template; a batch only writes the columns that vary. The rows begin behind the outer IP
header, which the kernel builds. :func:`wire_itself` has no headers at all: clones leave on layer 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tunnelbridge.batch import Column
from tunnelbridge.wire import erspan2, erspan3, ethernet, geneve, gre, juniper, tzsp, udp, vxlan
from tunnelbridge.wire.layer import Clones, Kind

GRE_PROTOCOL: Final = 47
UDP_PROTOCOL: Final = 17
NO_PROTOCOL: Final = 0
"""Of clones that ride in no IP header at all."""

Patch = Callable[[npt.NDArray[Any], Clones, Column], None]
Rows = npt.NDArray[np.uint8]


@dataclass(slots=True)
class Header:
    """One header of the stack: its template record and how to patch rows of it."""

    template: npt.NDArray[np.void]
    patch: Patch


@dataclass(slots=True)
class Encapsulation:
    """The outer headers of one tunnel.

    ``headers`` from the outside in; ``suffix`` are octets that replace the first ones of every frame
    (a rewritten destination MAC), so the frame is sent without these. ``tag`` is TPID << 16 | TCI of a
    VLAN tag that every frame gets behind its MAC addresses, 0 for none.
    """

    kind: Kind
    ip_protocol: int
    headers: list[Header]
    identifier: int | None = None
    port: int | None = None
    bare_ip: bool = False
    suffix: bytes = b""
    tag: int = 0
    _rows: Rows = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    _views: list[npt.NDArray[Any]] = field(default_factory=list)

    @property
    def overhead(self) -> int:
        """Octets between the outer IP header and the inner frame."""
        return sum(header.template.itemsize for header in self.headers)

    @property
    def has_sequence(self) -> bool:
        """Whether the clones are numbered."""
        return any("sequence" in (header.template.dtype.names or ()) for header in self.headers)

    def rows(self, clones: Clones) -> Rows:
        """Return the outer headers of a batch of clones, shape (n, overhead + suffix), C-contiguous.

        Valid until the next call.
        """
        count = len(clones.length)
        if count > len(self._rows) or self._rows.shape[1] != self.overhead + len(self.suffix):
            self._grow(count)
        beyond = clones.length + len(self.suffix) + self.overhead
        for header, view in zip(self.headers, self._views, strict=True):
            beyond = beyond - header.template.itemsize
            header.patch(view[:count], clones, beyond)
        rows = self._rows[:count]
        if self._has_checksum:
            covered = np.full(count, rows.shape[1], np.int64)
            gre.finish_checksum(rows, covered, clones.batch)
        return rows

    @property
    def _has_checksum(self) -> bool:
        return self.ip_protocol == GRE_PROTOCOL and "checksum" in (
            self.headers[0].template.dtype.names or ()
        )

    def _grow(self, count: int) -> None:
        template = b"".join(header.template.tobytes() for header in self.headers) + self.suffix
        row = np.frombuffer(template, np.uint8)
        self._rows = np.tile(row, (max(count, 1024), 1))
        self._views = []
        offset = 0
        for header in self.headers:
            size = header.template.itemsize
            columns = self._rows[:, offset : offset + size]
            self._views.append(columns.view(header.template.dtype)[:, 0])
            offset += size


def gre_teb(key: int | None, sequence: bool, checksum: bool) -> Encapsulation:
    """Return GRE with Ethernet inside (0x6558)."""
    template = gre.template(gre.TEB, key, sequence, checksum)
    return Encapsulation(Kind.GRE, GRE_PROTOCOL, [Header(template, gre.patch)], key)


def gre_ip(key: int | None, sequence: bool, checksum: bool) -> Encapsulation:
    """Return GRE with bare IP inside (0x0800, 0x86DD)."""
    template = gre.template(gre.IPV4, key, sequence, checksum)
    return Encapsulation(
        Kind.GRE_IP, GRE_PROTOCOL, [Header(template, gre.patch)], key, bare_ip=True
    )


def erspan_1() -> Encapsulation:
    """Return ERSPAN type I: GRE 0x88BE and nothing more."""
    return Encapsulation(Kind.ERSPAN1, GRE_PROTOCOL, [Header(gre.template(gre.ERSPAN), gre.patch)])


def erspan_2(session: int, index: int) -> Encapsulation:
    """Return ERSPAN type II."""
    headers = [
        Header(gre.template(gre.ERSPAN, sequence=True), gre.patch),
        Header(erspan2.template(session, index), erspan2.patch),
    ]
    return Encapsulation(Kind.ERSPAN2, GRE_PROTOCOL, headers, session)


def erspan_3(session: int, hwid: int, granularity: str) -> Encapsulation:
    """Return ERSPAN type III."""
    headers = [
        Header(gre.template(gre.ERSPAN3, sequence=True), gre.patch),
        Header(erspan3.template(session, hwid, granularity), erspan3.patch),
    ]
    return Encapsulation(Kind.ERSPAN3, GRE_PROTOCOL, headers, session)


def over_udp(
    kind: Kind, port: int, template: npt.NDArray[np.void], patch: Patch, identifier: int | None
) -> Encapsulation:
    """Return a format that rides in UDP."""
    headers = [Header(udp.template(port), udp.patch), Header(template, patch)]
    return Encapsulation(kind, UDP_PROTOCOL, headers, identifier, port)


def vxlan_tunnel(port: int, vni: int) -> Encapsulation:
    """Return VXLAN."""
    return over_udp(Kind.VXLAN, port, vxlan.template(vni), vxlan.patch, vni)


def geneve_tunnel(port: int, vni: int, with_length: bool) -> Encapsulation:
    """Return GENEVE with Ethernet inside; ``with_length`` where frames may be cut."""
    return over_udp(Kind.GENEVE, port, geneve.template(vni, with_length), geneve.patch, vni)


def tzsp_tunnel(port: int, with_length: bool) -> Encapsulation:
    """Return TZSP; ``with_length`` where frames may be cut."""
    return over_udp(Kind.TZSP, port, tzsp.template(with_length), tzsp.patch, None)


def juniper_tunnel(
    port: int, host: bytes | None, source_vn: str, destination_vn: str
) -> Encapsulation:
    """Return the Juniper header."""
    template = juniper.template(host, source_vn, destination_vn)
    return over_udp(Kind.JUNIPER, port, template, juniper.patch, None)


def wire_itself(vlan: int | None, priority: int) -> Encapsulation:
    """Return no headers: frames go as they are, with an 802.1Q tag pushed if there is a ``vlan``."""
    tag = 0 if vlan is None else ethernet.TPID_8021Q << 16 | priority << 13 | vlan
    return Encapsulation(Kind.ETHERNET, NO_PROTOCOL, [], identifier=vlan, tag=tag)
