"""The routed lab: a client, a host whose interface is mirrored, a router, a collector.

::

     client                host                      router                   collector
    192.0.2.1 ──── 192.0.2.2  203.0.113.2 ── 203.0.113.1  198.51.100.1 ── 198.51.100.7
      eth0            eth0    up0                  host0  collector0          eth0
                   (mirrored)

The client's link has 2001:db8:1::/64 as well. Host and collector share no link: what leaves the
host for 198.51.100.7 passes the router. All offloads are as the kernel sets them.
"""

from __future__ import annotations

from dataclasses import dataclass

from netlab import Lab

CLIENT, CLIENT6 = "192.0.2.1", "2001:db8:1::1"
HOST, HOST6 = "192.0.2.2", "2001:db8:1::2"
COLLECTOR = "198.51.100.7"
MIRRORED = "eth0"

PICTURE = """\
     client                 host                       router                   collector
   192.0.2.1 ──── eth0 192.0.2.2  203.0.113.2 ── 203.0.113.1  198.51.100.1 ── 198.51.100.7
                   ║                                                               ║
                mirrored ══════════════════ GRE, over the router ══════════▶ mon0 and a pcap"""


@dataclass(frozen=True)
class Routed:
    """The namespaces' names."""

    client: str
    host: str
    router: str
    collector: str


def build(lab: Lab) -> Routed:
    """Build the network of this module's picture."""
    net = Routed(*(lab.namespace(role) for role in ("client", "host", "router", "collector")))
    lab.veth((net.client, "eth0"), (net.host, MIRRORED), "02:00:00:00:02:01", "02:00:00:00:02:02")
    lab.veth((net.host, "up0"), (net.router, "host0"))
    lab.veth((net.router, "collector0"), (net.collector, "eth0"))

    lab.address(net.client, "eth0", f"{CLIENT}/24", f"{CLIENT6}/64")
    lab.address(net.host, MIRRORED, f"{HOST}/24", f"{HOST6}/64")
    lab.address(net.host, "up0", "203.0.113.2/24")
    lab.address(net.router, "host0", "203.0.113.1/24")
    lab.address(net.router, "collector0", "198.51.100.1/24")
    lab.address(net.collector, "eth0", f"{COLLECTOR}/24")

    lab.setting(net.router, "net/ipv4/ip_forward", "1")
    lab.route(net.host, "default", via="203.0.113.1")
    lab.route(net.collector, "default", via="198.51.100.1")
    return net
