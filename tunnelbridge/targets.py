"""From ``--to``, ``--arp`` and ``--fdb`` to open tunnels.

A target is a tunnel, or a pool member's address that static ARP and FDB lead to a tunnel.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunnelbridge.clone.guard import Signature
from tunnelbridge.clone.neighbours import Neighbours, is_member
from tunnelbridge.config.tunnel import Ether, MtuPolicy, Outer, parse_tunnel
from tunnelbridge.errors import UsageError
from tunnelbridge.linux.endpoint import Endpoint
from tunnelbridge.linux.names import resolve_host
from tunnelbridge.linux.privileges import effective_capabilities
from tunnelbridge.linux.transmit import RawTunnelSocket, TunnelSocket, UdpTunnelSocket
from tunnelbridge.linux.wire_socket import WireSocket
from tunnelbridge.tunnel import Numbering, Tunnel
from tunnelbridge.wire import ipv4, ipv6
from tunnelbridge.wire.encapsulation import UDP_PROTOCOL, Encapsulation
from tunnelbridge.wire.layer import Kind


@dataclass(frozen=True, slots=True)
class Target:
    """One tunnel to clone into, as configured; nothing is open yet."""

    name: str
    spec: Outer
    remote: str
    """The far end as an IP literal; of clones that stay on layer 2 the interface."""
    member: str | None = None
    mac: bytes = b""
    """What clones get as destination MAC; empty for none."""

    @property
    def is_ether(self) -> bool:
        """Clones leave by an interface as plain frames."""
        return isinstance(self.spec, Ether)

    @property
    def ip_header(self) -> int:
        """Octets of the outer IP header; 0 on layer 2."""
        if self.is_ether:
            return 0
        version = ipaddress.ip_address(self.remote).version
        header = ipv6.HEADER if version == 6 else ipv4.HEADER
        return int(header.itemsize)

    def encapsulation(self, may_cut: bool) -> Encapsulation:
        """Return the outer headers, with the rewritten MAC address behind them."""
        return replace(self.spec.encapsulation(may_cut), suffix=self.mac)

    def plan(self, default: MtuPolicy, may_cut: bool) -> tuple[MtuPolicy, Encapsulation]:
        """Return the MTU policy in force and the outer headers that go with it."""
        policy = self.spec.mtu or default
        if self.is_ether and policy is MtuPolicy.FRAGMENT:
            policy = MtuPolicy.DROP  # frames cannot be fragmented
        return policy, self.encapsulation(may_cut or policy is MtuPolicy.TRUNCATE)

    def signature(self) -> Signature:
        """Return what the loop guard looks for."""
        stack = self.spec.encapsulation(may_cut=False)
        if self.is_ether:
            return Signature(self.remote, stack.kind, None, stack.identifier, self.mac)
        return Signature(self.remote, stack.kind, stack.port, stack.identifier)


def resolve_targets(to: Sequence[str], arp: Sequence[str], fdb: Sequence[str]) -> list[Target]:
    """Return the targets that the command line names; raises UsageError and UserError."""
    neighbours = Neighbours(arp, fdb)
    targets = [_target(text, neighbours) for text in to]
    seen: dict[tuple[Signature, bytes], str] = {}
    for target in targets:
        identity = (target.signature(), target.mac)
        if identity in seen:
            raise UsageError(
                f"{target.name} and {seen[identity]} are one and the same tunnel:"
                " the far end could not tell them apart; give one another identifier"
            )
        seen[identity] = target.name
    refuse_a_port_of_two_kinds(targets)
    _refuse_unused(to, neighbours)
    return targets


def refuse_a_port_of_two_kinds(targets: Sequence[Target]) -> None:
    """Let the loop guard tell by the port what is behind it."""
    known: dict[int, tuple[Kind, str]] = {}
    for target in targets:
        found = target.signature()
        if found.port is None:
            continue
        kind, name = known.setdefault(found.port, (found.kind, target.name))
        if kind != found.kind:
            raise UsageError(
                f"{target.name} and {name} are two encapsulations through UDP port {found.port}:"
                " give each a port of its own"
            )


def _refuse_unused(to: Sequence[str], neighbours: Neighbours) -> None:
    """Refuse static entries that lead nowhere: a mistyped address would pass unnoticed."""
    members = {str(ipaddress.ip_address(text)) for text in to if is_member(text)}
    for address, mac in neighbours.arp.items():
        if address not in members:
            raise UsageError(
                f"no --to uses --arp {address}={mac}: add --to {address}, or leave it out"
            )
    used = set(neighbours.arp.values())
    for mac, tunnel in neighbours.fdb.items():
        if mac not in used:
            raise UsageError(
                f"no --to uses --fdb {mac}={tunnel}: add --arp IP={mac} and --to IP, or leave it out"
            )


def _target(text: str, neighbours: Neighbours) -> Target:
    if not is_member(text):
        spec = parse_tunnel(text)
        return Target(text, spec, far_end(text, spec))
    adjacency = neighbours.resolve(text)
    spec = parse_tunnel(adjacency.tunnel)
    if spec.encapsulation(may_cut=False).bare_ip:
        raise UsageError(
            f"{adjacency.tunnel} carries bare IP: a member behind static ARP and FDB needs a tunnel"
            " that carries Ethernet, or there is no MAC address to rewrite"
        )
    name = f"{text} via {adjacency.tunnel}"
    return Target(name, spec, far_end(name, spec), text, adjacency.mac)


def far_end(name: str, spec: Outer) -> str:
    """Return the far end as an IP literal, or an interface; raises UserError and UsageError."""
    if isinstance(spec, Ether):
        return spec.remote
    remote = resolve_host(spec.remote)
    if ipaddress.ip_address(remote).is_unspecified:
        raise UsageError(f"tunnel {name}: {remote} is nobody's address: name the far end's")
    return remote


def endpoint(target: Target) -> Endpoint:
    """Return what the outer IP header of a target looks like."""
    return Endpoint(
        remote=target.remote,
        protocol=target.spec.encapsulation(may_cut=False).ip_protocol,
        local=target.spec.local,
        ttl=target.spec.ttl,
        dscp=target.spec.dscp,
    )


def open_tunnel(
    target: Target, default: MtuPolicy, may_cut: bool, numbering: Numbering | None = None
) -> Tunnel:
    """Open a target's socket: raw where the process may, otherwise plain UDP for UDP formats."""
    policy, stack = target.plan(default, may_cut)
    return Tunnel(
        target.name,
        stack,
        lambda: open_socket(target, stack),
        policy,
        target.ip_header,
        numbering,
    )


def open_socket(target: Target, stack: Encapsulation) -> TunnelSocket:
    """Open what carries a target's clones; raises UserError."""
    if target.is_ether:
        return WireSocket(target.remote)
    may_be_raw = "CAP_NET_RAW" in effective_capabilities()
    if stack.ip_protocol == UDP_PROTOCOL and stack.port is not None and not may_be_raw:
        return UdpTunnelSocket(endpoint(target), stack.port)
    return RawTunnelSocket(endpoint(target))
