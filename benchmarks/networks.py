"""The network that everything is measured on.

::

     generator                  host                     router
    192.0.2.1  eth0 ──── eth0  192.0.2.2
                        (mirrored)  up0 203.0.113.2 ── 203.0.113.1 host0 (drops all)

     generator                collector
    198.51.100.1  eth1 ──── eth0  198.51.100.7

The router counts what it receives and drops it at its ingress: its counter is the judge, and no
further hop takes time from those that are measured (on a veth the sender's core pays for the
receiver). Nothing else talks: no IPv6, neighbours are static.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from netlab import Lab, inside

GENERATOR, HOST = "192.0.2.1", "192.0.2.2"
HOST_UP, ROUTER = "203.0.113.2", "203.0.113.1"
SOURCE, ANALYSER = "198.51.100.1", "198.51.100.7"
MIRRORED: Final = "eth0"
UP_MTU: Final = 1600
"""Room for a full frame and its tunnel, as underlays for VXLAN have it."""

OTHER_HOST: Final = "02:00:00:00:00:99"
"""Destination of mirrored frames: the host's own stack leaves them alone."""
COLLECTOR_MAC: Final = "02:00:00:00:03:02"


@dataclass(frozen=True)
class Network:
    """The namespaces' names, and counters of their interfaces."""

    generator: str
    host: str
    router: str
    collector: str
    mirrored: Counter
    """Packets that came in on the mirrored interface."""
    cloned: Counter
    """Packets that came to the router."""
    arrived: Counter
    """Packets that came to the collector."""


class Counter:
    """Packets an interface has received since it was made, read in its namespace."""

    def __init__(self, namespace: str, interface: str) -> None:
        self._prefix = f"{interface}:"
        self._file: TextIO = inside(namespace, Path("/proc/thread-self/net/dev").open)

    def __call__(self) -> int:
        self._file.seek(0)
        for line in self._file:
            name, _, numbers = line.partition(":")
            if f"{name.strip()}:" == self._prefix:
                return int(numbers.split()[1])
        raise LookupError(f"no interface {self._prefix[:-1]}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def build(lab: Lab) -> Network:
    """Build the network of this module's picture."""
    roles = ("gen", "host", "router", "collector")
    generator, host, router, collector = (lab.namespace(role, silent=True) for role in roles)
    links = (
        ((generator, "eth0", GENERATOR), (host, MIRRORED, HOST), 1),
        ((host, "up0", HOST_UP), (router, "host0", ROUTER), 2),
        ((generator, "eth1", SOURCE), (collector, "eth0", ANALYSER), 3),
    )
    for a, b, number in links:
        _link(lab, a, b, number)
    for namespace, interface in ((host, "up0"), (router, "host0")):
        lab.command("ip", "-n", namespace, "link", "set", interface, "mtu", str(UP_MTU))
    lab.route(host, "default", via=ROUTER)
    _drop_all(lab, router, "host0")
    counters = [Counter(host, MIRRORED), Counter(router, "host0"), Counter(collector, "eth0")]
    for each in counters:
        lab.defer(each.close)
    return Network(generator, host, router, collector, *counters)


def _link(lab: Lab, a: tuple[str, str, str], b: tuple[str, str, str], number: int) -> None:
    """Link two namespaces; addresses and neighbours are fixed, so nobody asks for them."""
    macs = [f"02:00:00:00:{number:02x}:{end:02x}" for end in (1, 2)]
    lab.veth(a[:2], b[:2], *macs)
    for (namespace, interface, address), (_, _, other), mac in ((a, b, macs[1]), (b, a, macs[0])):
        lab.address(namespace, interface, f"{address}/24")
        lab.command(
            "ip", "-n", namespace, "neighbour", "replace", other,
            "lladdr", mac, "dev", interface, "nud", "permanent",
        )  # fmt: skip


def _drop_all(lab: Lab, namespace: str, interface: str) -> None:
    hook = f"type filter hook ingress device {interface} priority 0; policy drop;"
    for rule in ("add table netdev bench", f"add chain netdev bench arriving {{ {hook} }}"):
        lab.command("nft", rule, namespace=namespace)


def cores() -> tuple[int, int]:
    """Return the core of the generator and the core of what is measured."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]
