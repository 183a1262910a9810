"""Static ARP and FDB: which tunnel a clone pool member sits behind, as on a BIG-IP (K17567).

A member's address is looked up in the static ARP table, the MAC it gives in the static FDB, and the
FDB gives the tunnel. The clone differs from the original in the destination MAC only.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from tunnelbridge.errors import UsageError

_MAC: Final = re.compile(r"[0-9a-f]{2}(?:[:-][0-9a-f]{2}){5}", re.IGNORECASE)


class Adjacency(NamedTuple):
    """What stands in for a member's missing layer-2 adjacency."""

    mac: bytes
    tunnel: str


class Neighbours:
    """The static tables, from ``IP=MAC`` and ``MAC=TUNNEL`` entries."""

    def __init__(self, arp: Iterable[str], fdb: Iterable[str]) -> None:
        self.arp: dict[str, str] = {}
        self.fdb: dict[str, str] = {}
        for entry in arp:
            address, mac = _halves(entry, "--arp", "IP=MAC")
            _add(self.arp, "--arp", _address(address, entry), _mac(mac, f"--arp {entry}"))
        for entry in fdb:
            mac, tunnel = _halves(entry, "--fdb", "MAC=TUNNEL")
            _add(self.fdb, "--fdb", _mac(mac, f"--fdb {entry}"), tunnel)

    def resolve(self, member: str) -> Adjacency:
        """Follow member → MAC → tunnel; a missing link raises UsageError that names it."""
        mac = self.arp.get(str(ipaddress.ip_address(member)))
        if mac is None:
            raise UsageError(
                f"no ARP entry for {member}: add --arp {member}=MAC and --fdb MAC=TUNNEL, or give"
                f" a tunnel (gre://{member})"
            )
        tunnel = self.fdb.get(mac)
        if tunnel is None:
            raise UsageError(
                f"no FDB entry for {mac} (member {member}): a layer-2 FDB entry is required,"
                f" as in F5 K17567; add --fdb {mac}=TUNNEL"
            )
        return Adjacency(bytes.fromhex(mac.replace(":", "")), tunnel)


def is_member(target: str) -> bool:
    """Tell a pool member's address from a tunnel."""
    try:
        ipaddress.ip_address(target)
    except ValueError:
        return False
    return True


def _add(table: dict[str, str], option: str, key: str, value: str) -> None:
    if key in table:
        raise UsageError(f"{option} names {key} twice: leave one entry")
    table[key] = value


def _halves(entry: str, option: str, form: str) -> tuple[str, str]:
    left, equals, right = entry.partition("=")
    if not (left and equals and right):
        raise UsageError(f"{option} {entry}: expected {form}")
    return left, right


def _address(text: str, entry: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise UsageError(f"--arp {entry}: {text} is not an IP address") from None


def _mac(text: str, where: str) -> str:
    if not _MAC.fullmatch(text):
        raise UsageError(f"{where}: {text} is not a MAC address (as in 02:00:0a:0a:0a:0a)")
    return text.lower().replace("-", ":")
