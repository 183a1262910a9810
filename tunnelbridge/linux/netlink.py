"""Ask the kernel for links and routes.

pyroute2 runs its own asyncio loop, which uvloop cannot stand in for, and refuses to start inside a
running one; so every question is asked in a short-lived thread. Link events come from
:mod:`tunnelbridge.linux.links`.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tunnelbridge.errors import UserError
from tunnelbridge.linux import options
from tunnelbridge.linux.namespace import in_thread
from tunnelbridge.linux.tpacket import no_interface

RTN_LOCAL: Final = 2  # linux/rtnetlink.h


@dataclass(frozen=True, slots=True)
class Link:
    """An interface; ``kind`` is its ARPHRD number (1 Ethernet, 772 loopback, 65534 none).

    ``mac`` is empty where the interface has none; ``up`` is the administrative state.
    """

    index: int
    name: str
    mtu: int
    mac: bytes
    kind: int
    up: bool


@dataclass(frozen=True, slots=True)
class Route:
    """How packets to ``remote`` leave this host now.

    ``mtu`` is the route's if it has one (configured or learned), else the interface's.
    ``next_hop_mac`` is None while the neighbour is not resolved, or needs no resolving.
    """

    remote: str
    interface: str
    index: int
    source: str
    gateway: str | None
    mtu: int
    next_hop_mac: str | None


def link(name: str) -> Link:
    """Return an interface's facts; UserError if there is none of that name."""
    return in_thread(lambda: _link(name))


def route(remote: str) -> Route:
    """Return the route to an IP literal; UserError if there is none."""
    return in_thread(lambda: _route(remote))


def is_own(literal: str) -> bool:
    """Tell whether this host takes what is sent to an IP literal (RTN_LOCAL: its own addresses)."""
    return in_thread(lambda: _is_own(literal))


def _is_own(literal: str) -> bool:
    family, address = options.resolve(literal)
    wanted = {"dst": str(address[0]).partition("%")[0], "family": int(family)}
    with IPRoute() as netlink:
        try:
            return bool(netlink.route("get", **wanted)[0]["type"] == RTN_LOCAL)
        except NetlinkError:  # no route at all
            return False


def _link(name: str) -> Link:
    with IPRoute() as netlink:
        try:
            found = netlink.link("get", ifname=name)[0]
        except (NetlinkError, OSError, ValueError):  # no such device; or no possible name at all
            raise no_interface(name) from None
    return _as_link(found)


def _as_link(message: Any) -> Link:
    mac = message.get_attr("IFLA_ADDRESS") or ""
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mtu=message.get_attr("IFLA_MTU"),
        mac=_octets(mac),
        kind=message["ifi_type"],
        up=bool(message["flags"] & options.IFF_UP),
    )


def _octets(mac: str) -> bytes:
    try:
        return bytes.fromhex(mac.replace(":", ""))
    except ValueError:  # tunnel devices show an IP address here
        return b""


def _route(remote: str) -> Route:
    family, address = options.resolve(remote)
    literal, _, _ = str(address[0]).partition("%")
    wanted: dict[str, Any] = {"dst": literal, "family": int(family)}
    if family == socket.AF_INET6 and address[3]:
        wanted["oif"] = address[3]
    with IPRoute() as netlink:
        try:
            found = netlink.route("get", **wanted)[0]
        except NetlinkError as error:
            reason = "" if error.code == errno.ENETUNREACH else f" ({error.args[1]})"
            raise UserError(f"no route to {remote}{reason}") from None
        device = _as_link(netlink.link("get", index=found.get_attr("RTA_OIF"))[0])
        gateway = found.get_attr("RTA_GATEWAY") or (found.get_attr("RTA_VIA") or {}).get("addr")
        metrics = found.get_attr("RTA_METRICS")
        return Route(
            remote=remote,
            interface=device.name,
            index=device.index,
            source=found.get_attr("RTA_PREFSRC") or "",
            gateway=gateway,
            mtu=(metrics and metrics.get_attr("RTAX_MTU")) or device.mtu,
            next_hop_mac=_neighbour(netlink, device.index, gateway or literal),
        )


def _neighbour(netlink: Any, index: int, address: str) -> str | None:
    """Return the link address of a neighbour; the kernel tells it only while it is valid."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for entry in netlink.get_neighbours(family=int(family)):
        if entry["ifindex"] == index and entry.get_attr("NDA_DST") == address:
            mac: str = entry.get_attr("NDA_LLADDR") or ""
            return mac if mac.strip("0:") else None  # zeros where nothing is to be resolved
    return None
