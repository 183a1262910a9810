"""Sockets that tunnels arrive on: what was asked for, or everything that can be opened.

With CAP_NET_RAW one raw socket takes all UDP ports (a bad outer checksum loses nothing there, and
one queue serves all ports), beside a quiet UDP socket per port that keeps the kernel from answering
with ICMP. Without, each port has a UDP socket of its own, and GRE cannot be heard at all.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tunnelbridge.errors import UsageError, UserError
from tunnelbridge.linux.listen import open_raw, open_udp, quiet
from tunnelbridge.linux.privileges import effective_capabilities
from tunnelbridge.linux.receive import Receiver
from tunnelbridge.wire import udp
from tunnelbridge.wire.layer import Kind

GRE: Final = 47
UDP: Final = 17
IP_KINDS: Final = {"ipip": 4, "6in4": 41, "etherip": 97, "mpls": 137}
"""Tunnels that ride in IP itself, beside GRE: protocol numbers."""
UDP_KINDS: Final = {
    kind.slug: kind
    for kind in (
        Kind.VXLAN,
        Kind.VXLAN_GPE,
        Kind.GENEVE,
        Kind.TZSP,
        Kind.JUNIPER,
        Kind.MPLS,
        Kind.GRE,
    )
}


@dataclass(slots=True)
class Wanted:
    """What to listen on."""

    gre: bool = True
    ports: dict[int, Kind] = field(default_factory=lambda: dict(udp.PORTS))
    ip: list[int] = field(default_factory=list)
    explicit: bool = False
    """The user named it: what cannot be opened is an error, not a remark."""


@dataclass(slots=True)
class Listener:
    """One socket and the kind of header its datagrams begin with."""

    name: str
    receiver: Receiver
    first: Kind
    port: int = 0
    """Of a plain UDP socket; raw ones leave it in the datagrams."""


def parse_wanted(
    gre: bool | None,
    vxlan: Sequence[int],
    geneve: Sequence[int],
    others: Sequence[str],
    ip: Sequence[str],
) -> Wanted:
    """Return what the command line asks for; raises UsageError."""
    named = [(port, Kind.VXLAN) for port in vxlan] + [(port, Kind.GENEVE) for port in geneve]
    for text in others:
        name, colon, port = text.partition(":")
        kind = UDP_KINDS.get(name)
        if kind is None or not colon or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UsageError(
                f"--udp {text}: expected KIND:PORT, KIND one of {', '.join(UDP_KINDS)}"
            )
        named.append((int(port), kind))
    ports: dict[int, Kind] = {}
    for number, kind in named:
        if ports.setdefault(number, kind) != kind:
            raise UsageError(f"UDP port {number} cannot be {ports[number].slug} and {kind.slug}")
    for name in ip:
        if name not in IP_KINDS:
            raise UsageError(f"--ip {name}: expected one of {', '.join(IP_KINDS)}")
    explicit = bool(ports or ip or gre)
    if not explicit:
        return Wanted(gre=gre is not False)
    return Wanted(bool(gre), ports, [IP_KINDS[name] for name in ip], explicit=True)


class Listeners:
    """All open sockets of a collector."""

    def __init__(self, wanted: Wanted, addresses: Sequence[str]) -> None:
        self.wanted = wanted
        self.open: list[Listener] = []
        self.problems: list[str] = []
        """What could not be opened and why; without ``explicit`` these are only remarks."""
        self._quiet: list[socket.socket] = []
        self.ports = dict(wanted.ports)
        is_raw = "CAP_NET_RAW" in effective_capabilities()
        try:
            for family, address in _families(addresses):
                self._open_ip(family, address)
                if is_raw:
                    self._open_raw_udp(family, address)
                else:
                    self._open_udp(family, address)
            if not self.open:
                raise UserError("nothing to listen on: " + "; ".join(self.problems))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close every socket."""
        for listener in self.open:
            listener.receiver.close()
        for sock in self._quiet:
            sock.close()

    def _open_ip(self, family: int, address: str | None) -> None:
        protocols = ([GRE] if self.wanted.gre else []) + self.wanted.ip
        for protocol in protocols:
            first = Kind.IPV4
            if family == socket.AF_INET6:  # the kernel hands out what follows the IPv6 headers
                kinds = {GRE: Kind.GRE, 97: Kind.ETHERIP, 137: Kind.MPLS}
                if protocol not in kinds:
                    continue
                first = kinds[protocol]
            name = "GRE" if protocol == GRE else f"IP protocol {protocol}"
            try:
                sock = open_raw(family, protocol, address, None)
            except UserError as error:
                self._problem(error)
                continue
            self._add(f"{name} on {_where(family, address)}", sock, first)

    def _open_raw_udp(self, family: int, address: str | None) -> None:
        """Open one raw socket for all ports that nobody else holds."""
        free: list[int] = []
        for port in self.wanted.ports:
            sock = quiet(family, port, address)
            if sock is None:
                self._problem(UserError(_in_use(port, family, address)))
                continue
            self._quiet.append(sock)
            free.append(port)
        if free:
            sock = open_raw(family, UDP, address, free)
            names = ", ".join(f"{self.wanted.ports[port].slug} {port}" for port in free)
            first = Kind.IPV4 if family == socket.AF_INET else Kind.UDP
            self._add(f"UDP ({names}) on {_where(family, address)}", sock, first)

    def _open_udp(self, family: int, address: str | None) -> None:
        for port, kind in self.wanted.ports.items():
            try:
                sock = open_udp(family, port, address)
            except UserError as error:
                self._problem(error)
                continue
            self._add(f"UDP ({kind.slug} {port}) on {_where(family, address)}", sock, kind, port)

    def _problem(self, error: UserError) -> None:
        if self.wanted.explicit:
            raise error
        self.problems.append(str(error))

    def _add(self, name: str, sock: socket.socket, first: Kind, port: int = 0) -> None:
        self.open.append(Listener(name, Receiver(sock), first, port))


def _families(addresses: Sequence[str]) -> list[tuple[int, str | None]]:
    if not addresses:
        families = [socket.AF_INET, socket.AF_INET6] if _has_ipv6() else [socket.AF_INET]
        return [(family, None) for family in families]
    try:
        found = [ipaddress.ip_address(text) for text in addresses]
    except ValueError as error:
        raise UsageError(f"--bind: {error}") from None
    for address in found:
        alike = [other for other in found if other.version == address.version]
        if alike.count(address) > 1 or (address.is_unspecified and len(alike) > 1):
            raise UsageError(f"--bind {address}: raw sockets would take each packet more than once")
    family_of = {4: socket.AF_INET, 6: socket.AF_INET6}
    return [(family_of[address.version], str(address)) for address in found]


def _has_ipv6() -> bool:
    """Tell whether the kernel speaks IPv6; ``ipv6.disable=1`` forbids it."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError:
        return False
    return True


def _where(family: int, address: str | None) -> str:
    return address or ("0.0.0.0" if family == socket.AF_INET else "::")


def _in_use(port: int, family: int, address: str | None) -> str:
    return (
        f"UDP port {port} on {_where(family, address)} is in use by another program:"
        " stop it, or listen on another port"
    )
