"""From the target that a session names to members and the way to each.

A target is, in this order: a pool, a destination, a tunnel by name or URL, a member's address, or a
label selector. A member is reached through its ``via``, or by member → MAC → tunnel as on a BIG-IP
(K17567), or on layer 2 in its ``subnet``. A missing link raises ValueError, whose text names it.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from tunnelbridge.config.mirror import Mirror
from tunnelbridge.config.pools import Destination, Distribution, Health, Member, Per, Pool, Rewrite
from tunnelbridge.config.tunnel import parse_tunnel
from tunnelbridge.config.values import specify
from tunnelbridge.errors import UsageError

_OFF: Final = Health()


@dataclass(frozen=True, slots=True)
class Way:
    """One member and how clones get there."""

    name: str
    """The member's address, or the tunnel as the target names it."""
    tunnels: tuple[str, ...]
    """Tunnel URLs: each gets every clone. Empty: layer 2, by the interface with the route to subnet."""
    mac: str | None = None
    """Destination MAC address that clones get; None leaves theirs."""
    address: str | None = None
    """Destination address that clones get (``rewrite = "mac+ip"``); None leaves theirs."""
    subnet: str | None = None
    weight: int = 1
    health: Health = _OFF


@dataclass(frozen=True, slots=True)
class Group:
    """Where a target leads: members, and how clones are shared among them."""

    name: str
    ways: tuple[Way, ...]
    distribution: Distribution = "all"
    per: Per = "packet"
    preserve_client_ip: bool = False


def resolve(mirror: Mirror, target: str) -> Group:
    """Return where ``target`` leads; raises ValueError with the reason when nowhere."""
    if target in mirror.pools:
        return _of_pool(mirror, target, mirror.pools[target])
    if target in mirror.destinations:
        return _of_destination(mirror, target, mirror.destinations[target])
    if target in mirror.tunnels or "://" in target:
        return Group(target, (Way(target, (tunnel_url(mirror, target),)),))
    address = _address(target)
    if address is not None:
        return Group(target, (way_to(mirror, address),))
    if "=" in target:
        return _of_labels(
            mirror, target, Destination.model_construct(labels=parse_selector(target))
        )
    known = [*mirror.pools, *mirror.destinations, *mirror.tunnels]
    there = f"there are {', '.join(known)}" if known else "there is none of them"
    raise ValueError(
        f"is no pool, destination or tunnel ({there}), and no tunnel URL, IP address or label selector"
    )


def parse_selector(text: str) -> dict[str, str]:
    """Return the labels of ``role=analyzer,site=a``; raises ValueError."""
    labels: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (half.strip() for half in part.partition("="))
        if not (name and equals):
            raise ValueError("a label selector is NAME=VALUE, several with commas between them")
        if name in labels:
            raise ValueError(f"selects by {name} twice")
        labels[name] = value
    return labels


def selected(mirror: Mirror, labels: dict[str, str]) -> Iterator[tuple[str, Member]]:
    """Yield pool name and member of those with all ``labels``, by address, each address once."""
    found: dict[str, tuple[str, Member]] = {}
    for name, pool in mirror.pools.items():
        for member in pool.members:
            if labels.items() <= member.labels.items():
                found.setdefault(member.ip, (name, member))
    yield from sorted(found.values(), key=lambda pair: _order(pair[1].ip))


def way_to(mirror: Mirror, address: str) -> Way:
    """Return the way to one address: a pool's member, or by static ARP and FDB."""
    for pool in mirror.pools.values():
        for member in pool.members:
            if member.ip == address:
                return way_of_member(mirror, pool, member)
    return _chained(mirror, Member(ip=address), None)


def way_of_member(mirror: Mirror, pool: Pool, member: Member) -> Way:
    """Return the way to a pool's member; raises ValueError that names the missing link."""
    way = _chained(mirror, member, pool.rewrite)
    return replace(way, weight=member.weight, health=pool.health)


def mac_of(mirror: Mirror, address: str) -> str | None:
    """Return the MAC address of a member: its own, else its ARP entry's."""
    for pool in mirror.pools.values():
        for member in pool.members:
            if member.ip == address and member.mac is not None:
                return member.mac
    return mirror.arp.get(address)


def tunnel_url(mirror: Mirror, text: str) -> str:
    """Return the URL of a tunnel by name or URL."""
    return mirror.tunnels.get(text, text)


def check_tunnel(mirror: Mirror, text: str) -> None:
    """Raise ValueError unless ``text`` is a tunnel's name or its URL."""
    if "://" in text:
        specify(text)
    elif text not in mirror.tunnels:
        known = ", ".join(mirror.tunnels) or "it is empty"
        raise ValueError(f"is no tunnel: neither a name in [tunnels] ({known}) nor a URL")


def _of_pool(mirror: Mirror, name: str, pool: Pool) -> Group:
    ways = tuple(way_of_member(mirror, pool, member) for member in pool.members)
    return Group(name, ways, pool.distribution, pool.per, pool.preserve_client_ip)


def _of_destination(mirror: Mirror, name: str, destination: Destination) -> Group:
    if destination.labels:
        return _of_labels(mirror, name, destination)
    assert destination.analyzer_ip is not None, "the model asks for it"
    analyzer = Member(ip=destination.analyzer_ip)
    way = _by_next_hop(destination, analyzer.ip) or _chained(mirror, analyzer, None)
    return Group(name, (way,))


def _of_labels(mirror: Mirror, name: str, destination: Destination) -> Group:
    """Members by label: the first by address that is not drained, one by hash, or all."""
    found = list(selected(mirror, destination.labels))
    if not found:
        wanted = ",".join(f"{key}={value}" for key, value in destination.labels.items())
        raise ValueError(f"no pool has a member with the labels {wanted}")
    if destination.select == "one":
        found = [next((pair for pair in found if pair[1].weight), found[0])]
    ways = []
    for pool_name, member in found:
        pool = mirror.pools[pool_name]
        way = _by_next_hop(destination, member.ip) or way_of_member(mirror, pool, member)
        ways.append(replace(way, weight=member.weight, health=pool.health))
    return Group(
        name,
        tuple(ways),
        "flow" if destination.select == "hash" else "all",
        preserve_client_ip=any(mirror.pools[pool].preserve_client_ip for pool, _ in found),
    )


def _by_next_hop(destination: Destination, address: str) -> Way | None:
    """Return the way that the destination itself describes (Contrail's mirror_table.h), if any."""
    if destination.has_header:
        return Way(address, (f"juniper://{_in_url(address)}:{destination.udp_port}",))
    if destination.next_hop == "static" and destination.vtep is not None:
        url = f"vxlan://{_in_url(destination.vtep)}?vni={destination.vni}"
        return Way(address, (url,), mac=destination.mac)
    return None


def _chained(mirror: Mirror, member: Member, wanted: Rewrite | None) -> Way:
    """Follow member → MAC → tunnel, or via, or subnet."""
    rewrite = wanted or ("none" if member.via and not member.mac else "mac")
    mac = member.mac or mirror.arp.get(member.ip)
    if mac is None and (rewrite != "none" or not (member.via or member.subnet)):
        raise ValueError(_no_arp(member, rewrite))
    names = member.via or (mirror.fdb.get(mac) if mac else None) or ()
    if not names and member.subnet is None:
        raise ValueError(
            f"no FDB entry for {mac} (member {member.ip}): a layer-2 FDB entry is required, as in F5"
            f' K17567; add "{mac}" = "TUNNEL" to [fdb]'
        )
    tunnels = tuple(tunnel_url(mirror, name) for name in names)
    if rewrite != "none":
        _refuse_bare_ip(tunnels)
    return Way(
        member.ip,
        tunnels,
        mac=None if rewrite == "none" else mac,
        address=member.ip if rewrite == "mac+ip" else None,
        subnet=None if tunnels else member.subnet,
    )


def _no_arp(member: Member, rewrite: Rewrite) -> str:
    if member.via:
        why = f'rewrite = "{rewrite}" needs its MAC address; '
        rest = " to [arp], or give the member a mac"
    elif member.subnet:
        why, rest = "", " to [arp], or give the member a mac (a dummy one will do)"
    else:
        why, rest = "", ' to [arp] and "MAC" = "TUNNEL" to [fdb], or give the member a via'
    return f'no ARP entry for {member.ip}: {why}add "{member.ip}" = "MAC"{rest}'


def _refuse_bare_ip(tunnels: Iterable[str]) -> None:
    for url in tunnels:
        with contextlib.suppress(UsageError):  # a wrong URL is told of where it stands
            if parse_tunnel(url).encapsulation(may_cut=False).bare_ip:
                raise ValueError(
                    f"{url} carries bare IP: a member whose MAC address clones get needs a tunnel"
                    " that carries Ethernet"
                )


def _address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _order(address: str) -> tuple[int, int]:
    value = ipaddress.ip_address(address)
    return value.version, int(value)


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address
